#!/usr/bin/python3
"""Serves the files of a folder on loopback, with byte ranges as network file systems of GDAL want them: range_server.py DIR
Prints its port, then serves until its standard input ends."""
import http.server
import os
import re
import sys
import threading


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def answer(self, body):
        path = os.path.join(sys.argv[1], os.path.basename(self.path))
        if not os.path.isfile(path):
            self.send_error(404)
            return
        with open(path, 'rb') as f:
            data = f.read()
        asked = re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers.get('Range', ''))
        first, last = 0, len(data) - 1
        if asked:
            first, last = int(asked[1]), min(last, int(asked[2] or last))
        if first > last:
            self.send_error(416)
            return
        self.send_response(206 if asked else 200)
        self.send_header('Accept-Ranges', 'bytes')
        self.send_header('Content-Length', str(last + 1 - first))
        if asked:
            self.send_header('Content-Range', 'bytes %d-%d/%d' % (first, last, len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data[first:last + 1])

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def log_message(self, *args):
        pass


server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
print(server.server_address[1], flush=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()
