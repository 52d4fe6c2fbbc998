# broker/queue.lua as a byte array, so that the program is one file.
add_custom_command(
  OUTPUT ${CMAKE_BINARY_DIR}/queue_lua.h
  COMMAND ${CMAKE_COMMAND} -DIN=${CMAKE_SOURCE_DIR}/broker/queue.lua -DOUT=${CMAKE_BINARY_DIR}/queue_lua.h -DNAME=btc_queue_lua
          -P ${CMAKE_SOURCE_DIR}/cmake/embed.cmake
  DEPENDS ${CMAKE_SOURCE_DIR}/broker/queue.lua ${CMAKE_SOURCE_DIR}/cmake/embed.cmake VERBATIM)
