"""Drives a gallery in headless Chromium from file://, as a person would: gallery_page.py GALLERY DOWNLOADS CHECK [SCREENSHOT]

Exit code 0: all held; 77: no Chromium, chromedriver or selenium here; anything else: what did not hold is on stderr.
CHECK: pair (a gallery of tests/integration/test_report.c), many (10,000 records), map (records with places).
"""
import json
import pathlib
import sys
import time

try:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select, WebDriverWait
except ImportError:
    sys.exit(77)

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"


def browser(downloads):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,860"):
        options.add_argument(word)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads), "download.prompt_for_download": False})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(service=Service(DRIVER), options=options)


class Page:
    def __init__(self, driver, folder):
        self.d = driver
        driver.get((pathlib.Path(folder).resolve() / "index.html").as_uri())
        WebDriverWait(driver, 60).until(lambda d: d.find_element(By.TAG_NAME, "body").get_attribute("data-ready") == "yes")

    def id(self, name):
        return self.d.find_element(By.ID, name)

    def keys(self, *words):
        for word in words:
            self.d.switch_to.active_element.send_keys(word)

    def choose(self, name, value):
        Select(self.id(name)).select_by_value(value)

    def js(self, text):
        return self.d.execute_script("return " + text)

    def shown(self):
        return self.js("btcchat.shown.map((r) => r.id)")

    def current(self):
        return self.js("btcchat.current() && btcchat.current().id")

    def wait(self, what, why):
        WebDriverWait(self.d, 60).until(lambda _: what(), why)


def wait_for(path):
    end = time.monotonic() + 60
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.1)
    return path.read_bytes().decode()


def contrast(page, name):
    """Of an element's text on the page's ground, by WCAG 2."""
    def light(colour):
        parts = [int(x) / 255 for x in colour[colour.index("(") + 1:-1].split(",")[:3]]
        r, g, b = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b
    ink = light(page.js(f"getComputedStyle(document.querySelector('{name}')).color"))
    ground = light(page.js("getComputedStyle(document.body).backgroundColor"))
    return ground, (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05)


def check_themes(page):
    for theme in ("light", "dark"):
        page.d.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]})
        for name in ("#caption", ".filters label", "button"):
            ground, ratio = contrast(page, name)
            assert (ground < 0.1) == (theme == "dark"), (theme, ground)
            assert ratio >= 4.5, (theme, name, ratio)


def check_policy(page):
    """Last, for refusals are in the browser's log as errors: the page itself may ask nobody."""
    for directive, ask in (("img-src", "new Image().src = 'http://127.0.0.1:9/x.png'"), ("connect-src", "fetch('http://127.0.0.1:9/').catch(() => 0)")):
        refused = page.d.execute_async_script("const done = arguments[0]; document.addEventListener('securitypolicyviolation', "
                                              "(e) => done(e.effectiveDirective), {once: true}); " + ask)
        assert refused == directive, (directive, refused)


def check_pair(page, downloads):
    assert page.shown() == ["one", "two", "evil</script><img src=x onerror=alert(1)>", "broken"], page.shown()
    # texts of others stay texts
    page.keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert page.current().startswith("evil"), page.current()
    assert page.id("caption").text == "</script><img src=x onerror=\"document.title='hacked'\"> a road", page.id("caption").text
    assert not page.d.find_elements(By.CSS_SELECTOR, "img[onerror]")
    assert page.d.title == "Test <b>gallery</b>", page.d.title
    # slider: by keys, and what it cuts
    page.keys(Keys.HOME)
    assert page.current() == "one"
    page.keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert page.id("slider").get_attribute("value") == "60"
    page.wait(lambda: "60%" in page.js("getComputedStyle(document.getElementById('after')).clipPath"), "the after image is cut at 60 %")
    page.wait(lambda: page.js("['before', 'after'].every((i) => document.getElementById(i).naturalWidth > 0)"), "both images load")
    page.d.execute_script("const s = document.getElementById('slider'); s.value = 20; s.dispatchEvent(new Event('input'))")
    page.wait(lambda: "20%" in page.js("getComputedStyle(document.getElementById('after')).clipPath"), "the slider moves the cut")
    # filters and order
    page.choose("changed", "yes")
    assert page.shown() == ["one", "evil</script><img src=x onerror=alert(1)>"], page.shown()
    page.choose("changed", "")
    page.choose("status", "failed")
    assert page.shown() == ["broken"]
    assert "cannot open" in page.id("no-images").text
    page.choose("status", "")
    page.choose("order", "score-")
    assert page.shown()[0].startswith("evil") and page.shown()[-1] == "broken", page.shown()
    page.choose("order", "id")
    assert page.shown()[0] == "broken", page.shown()
    page.choose("order", "run")
    page.id("words").send_keys("HOUSES built")
    page.wait(lambda: page.shown() == ["one"], "words filter")
    page.keys(Keys.ESCAPE)
    # labels: kept over a reload, exported
    page.keys("a")
    page.id("words").clear()
    page.id("words").send_keys(" ")
    page.wait(lambda: len(page.shown()) == 4, "all again")
    page.keys(Keys.ESCAPE, Keys.END, Keys.ARROW_UP, "r")
    page = Page(page.d, sys.argv[1])
    page.choose("label", "accept")
    assert page.shown() == ["one"], page.shown()
    page.choose("label", "")
    page.id("export-json").click()
    labels = json.loads(wait_for(downloads / "labels.json"))["labels"]
    assert [(x["id"][:4], x["label"]) for x in labels] == [("one", "accept"), ("evil", "reject")], labels
    page.id("export-csv").click()
    csv = wait_for(downloads / "labels.csv").split("\r\n")
    assert csv[0] == "id,label,caption,changed,score" and csv[1].startswith("one,accept,"), csv
    # help
    page.id("list").send_keys("?")
    assert page.id("help").is_displayed()
    page.keys(Keys.ESCAPE)
    page.wait(lambda: not page.id("help").is_displayed(), "help closes")
    # narrow: nothing is wider than the window
    page.d.set_window_size(520, 900)
    page.wait(lambda: page.js("document.documentElement.scrollWidth <= innerWidth"), "fits a narrow window")
    return page


def check_many(page, _):
    assert len(page.shown()) == 10000
    assert page.js("document.querySelectorAll('.row').length") < 60
    begin = time.monotonic()
    page.d.execute_script("document.getElementById('list').scrollTop = 84 * 7000")
    page.wait(lambda: page.js("document.getElementById('row-7000') !== null"), "rows far down appear")
    scroll = time.monotonic() - begin
    begin = page.js("performance.now()")
    page.d.execute_script("btcchat.filter({words: 'road 77', changed: '', status: '', label: '', order: 'score-'})")
    took = page.js("performance.now()") - begin
    n = len(page.shown())
    assert 0 < n < 10000, n
    print(f"10,000 records: jump {scroll * 1000:.0f} ms, filter and sort {took:.0f} ms with two calls of the driver")
    return page


def check_map(page, _):
    page.keys("m")
    page.wait(lambda: page.js("btcchat.map.shapes()") == len(page.shown()), "all footprints are drawn")
    page.wait(lambda: page.js("document.querySelectorAll('.degree').length") > 2, "graticule")
    return page


def main():
    if not pathlib.Path(CHROMIUM).exists() or not pathlib.Path(DRIVER).exists():
        sys.exit(77)
    downloads = pathlib.Path(sys.argv[2])
    driver = browser(downloads)
    try:
        page = {"pair": check_pair, "many": check_many, "map": check_map}[sys.argv[3]](Page(driver, sys.argv[1]), downloads)
        severe = [x for x in driver.get_log("browser") if x["level"] == "SEVERE"]
        assert not severe, severe
        if len(sys.argv) > 4:
            page.d.save_screenshot(sys.argv[4])
        if sys.argv[3] == "pair":
            check_themes(page)
            check_policy(page)
    finally:
        driver.quit()


main()
