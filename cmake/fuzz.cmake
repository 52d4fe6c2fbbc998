# tests/fuzz/fuzz_*.c: libFuzzer targets, one a parser of untrusted bytes. Built with clang and ASan+UBSan (preset fuzz).
file(GLOB files CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/fuzz/fuzz_*.c)
foreach(file ${files})
  get_filename_component(program ${file} NAME_WE)
  add_executable(${program} ${file})
  target_link_libraries(${program} PRIVATE btc_cli)
  target_link_options(${program} PRIVATE -fsanitize=fuzzer)
  set_target_properties(${program} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/fuzz)
endforeach()
