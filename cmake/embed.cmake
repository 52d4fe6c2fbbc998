# A file as a C byte array, 0-terminated: cmake -DIN=.. -DOUT=.. -DNAME=.. -P embed.cmake
file(READ ${IN} hex HEX)
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
file(WRITE ${OUT} "static const char ${NAME}[] = {${bytes}0};\n")
