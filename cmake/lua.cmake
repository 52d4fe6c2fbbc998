# broker/queue/*.lua as one library: build/queue.lua (the model check runs it) and a byte array, so that the program is one file.
set(BTC_QUEUE_PARTS base ends submit claim holder upkeep workers pipes) # each uses what stands before it
list(TRANSFORM BTC_QUEUE_PARTS PREPEND ${CMAKE_SOURCE_DIR}/broker/queue/)
list(TRANSFORM BTC_QUEUE_PARTS APPEND .lua)
add_custom_command(
  OUTPUT ${CMAKE_BINARY_DIR}/queue.lua
  COMMAND ${CMAKE_COMMAND} -E cat ${BTC_QUEUE_PARTS} > ${CMAKE_BINARY_DIR}/queue.lua
  DEPENDS ${BTC_QUEUE_PARTS})
add_custom_command(
  OUTPUT ${CMAKE_BINARY_DIR}/queue_lua.h
  COMMAND ${CMAKE_COMMAND} -DIN=${CMAKE_BINARY_DIR}/queue.lua -DOUT=${CMAKE_BINARY_DIR}/queue_lua.h -DNAME=btc_queue_lua
          -P ${CMAKE_SOURCE_DIR}/cmake/embed.cmake
  DEPENDS ${CMAKE_BINARY_DIR}/queue.lua ${CMAKE_SOURCE_DIR}/cmake/embed.cmake VERBATIM)
