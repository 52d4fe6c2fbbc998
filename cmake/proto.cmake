# proto/btcchat.proto -> C at build time (protobuf-c).
find_program(PROTOC_C protoc-c REQUIRED)
add_custom_command(
  OUTPUT ${CMAKE_BINARY_DIR}/proto/btcchat.pb-c.c ${CMAKE_BINARY_DIR}/proto/btcchat.pb-c.h
  COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_BINARY_DIR}/proto
  COMMAND ${PROTOC_C} --proto_path=${CMAKE_SOURCE_DIR}/proto --c_out=${CMAKE_BINARY_DIR}/proto btcchat.proto
  DEPENDS ${CMAKE_SOURCE_DIR}/proto/btcchat.proto VERBATIM)
# Generated code is not ours to mend.
set_source_files_properties(${CMAKE_BINARY_DIR}/proto/btcchat.pb-c.c PROPERTIES COMPILE_OPTIONS "-w")

# Another version of the protocol, which only the interop test speaks.
add_custom_command(
  OUTPUT ${CMAKE_BINARY_DIR}/proto/btcchat_prev.pb-c.c ${CMAKE_BINARY_DIR}/proto/btcchat_prev.pb-c.h
  COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_BINARY_DIR}/proto
  COMMAND ${PROTOC_C} --proto_path=${CMAKE_SOURCE_DIR}/tests/support --c_out=${CMAKE_BINARY_DIR}/proto btcchat_prev.proto
  DEPENDS ${CMAKE_SOURCE_DIR}/tests/support/btcchat_prev.proto VERBATIM)
set_source_files_properties(${CMAKE_BINARY_DIR}/proto/btcchat_prev.pb-c.c PROPERTIES COMPILE_OPTIONS "-w")
