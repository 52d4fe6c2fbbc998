# tests/<label>/test_*.c: one program a file, one ctest entry a test function, labelled by folder.
pkg_check_modules(CMOCKA REQUIRED IMPORTED_TARGET cmocka)
set(BTC_SHARED "${CMAKE_SOURCE_DIR}/../shared" CACHE PATH "Folder with the golden vectors and test images")

file(GLOB support CONFIGURE_DEPENDS tests/support/*.c)
add_library(btc_test_support STATIC ${support} ${CMAKE_BINARY_DIR}/proto/btcchat_prev.pb-c.c ${CMAKE_BINARY_DIR}/queue_lua.h)
target_link_libraries(btc_test_support PUBLIC PkgConfig::CMOCKA PkgConfig::HIREDIS btc_cli)
target_include_directories(btc_test_support PUBLIC ${CMAKE_SOURCE_DIR} ${CMAKE_SOURCE_DIR}/tests/support PRIVATE ${CMAKE_BINARY_DIR})

set(BTC_TEST_ENVIRONMENT
  "BTCCHAT_SHARED=${BTC_SHARED}" "BTCCHAT_BINARY=$<TARGET_FILE:btcchat>" "BTCCHAT_SOURCE=${CMAKE_SOURCE_DIR}"
  "ASAN_OPTIONS=abort_on_error=0:exitcode=66:allocator_may_return_null=1:detect_leaks=1" "UBSAN_OPTIONS=print_stacktrace=1"
  "TSAN_OPTIONS=suppressions=${CMAKE_SOURCE_DIR}/tests/tsan.supp:halt_on_error=1:second_deadlock_stack=1")
if(BTC_GEO)
  list(APPEND BTC_TEST_ENVIRONMENT "BTCCHAT_GEO=$<TARGET_FILE:btcchat-geo>")
endif()
# Whole queues that are hurt all the time: begun first, one at a time, with half of the jobs left to others, since they mostly wait. Cuts
# of the network are judged by the clock: alone. With BTCCHAT_LONG=1 some go on for an hour.
set(BTC_HEAVY_TESTS test_captions test_chaos test_chaos_long test_members test_pipe_full test_partition)
set(BTC_SERIAL_TESTS test_chaos_long test_partition test_pipe_full)

foreach(label unit golden integration fault)
  file(GLOB files CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/${label}/test_*.c)
  foreach(file ${files})
    get_filename_component(program ${file} NAME_WE)
    add_executable(${program} ${file})
    add_dependencies(${program} btcchat)
    target_link_libraries(${program} PRIVATE btc_test_support btc_cli)
    set_target_properties(${program} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${file})
    file(READ ${file} text)
    set(timeout 300)
    set(heavy)
    if(program IN_LIST BTC_HEAVY_TESTS)
      set(timeout 600)
      set(heavy PROCESSORS 2 RESOURCE_LOCK whole_queue COST 100)
    endif()
    if(program IN_LIST BTC_SERIAL_TESTS)
      set(heavy RUN_SERIAL ON)
    endif()
    if(program MATCHES "^test_(run|step_crash)$")
      set(timeout 600)
    endif()
    if(program MATCHES "^test_(chaos_long|captions|pipe_full)$")
      set(timeout 7200)
    endif()
    string(REGEX MATCHALL "cmocka_unit_test[a-z_]*\\([a-z0-9_]+" entries "${text}")
    foreach(entry ${entries})
      string(REGEX REPLACE ".*\\(" "" test "${entry}")
      add_test(NAME ${program}.${test} COMMAND ${program} ${test})
      set_tests_properties(${program}.${test} PROPERTIES LABELS ${label} TIMEOUT ${timeout} ${heavy}
        ENVIRONMENT "${BTC_TEST_ENVIRONMENT}" SKIP_REGULAR_EXPRESSION "\\[  SKIPPED \\]")
    endforeach()
  endforeach()
endforeach()

# Programs that tests and people run beside the queue.
add_executable(btcchat-check tests/tools/btcchat_check.c)
target_link_libraries(btcchat-check PRIVATE btc_test_support)

# The queue's functions in all orders of steps, over an in-memory Redis (tests/model). LuaJIT is the Lua 5.1 that has Redis's bit library.
find_program(BTC_LUAJIT luajit)
if(BTC_LUAJIT)
  add_test(NAME model_queue COMMAND ${BTC_LUAJIT} ${CMAKE_SOURCE_DIR}/tests/model/queue_model.lua ${CMAKE_BINARY_DIR}/queue.lua
    ${CMAKE_SOURCE_DIR}/tests/model/redis.lua 2)
else()
  add_test(NAME model_queue COMMAND ${CMAKE_COMMAND} -E echo "[  SKIPPED ] luajit is not installed")
endif()
set_tests_properties(model_queue PROPERTIES LABELS model TIMEOUT 600 SKIP_REGULAR_EXPRESSION "\\[  SKIPPED \\]")

# deploy/slurm on a real controller and node of its own; skips where Slurm is not installed or cannot start. `make test-long` installs it.
add_test(NAME slurm COMMAND ${CMAKE_SOURCE_DIR}/tests/integration/slurm.sh $<TARGET_FILE:btcchat> $<TARGET_FILE:btcchat-check> ${CMAKE_SOURCE_DIR})
set_tests_properties(slurm PROPERTIES LABELS integration TIMEOUT 600 COST 1000 ENVIRONMENT "${BTC_TEST_ENVIRONMENT}"
  SKIP_REGULAR_EXPRESSION "\\[  SKIPPED \\]")

# Workers on hosts of their own, which are network namespaces; skips where those cannot be made (root makes them).
add_test(NAME members_hosts COMMAND ${CMAKE_SOURCE_DIR}/tests/integration/members_hosts.sh $<TARGET_FILE:btcchat> ${CMAKE_SOURCE_DIR})
set_tests_properties(members_hosts PROPERTIES LABELS integration TIMEOUT 900 PROCESSORS 2 RESOURCE_LOCK whole_queue ENVIRONMENT "${BTC_TEST_ENVIRONMENT}"
  SKIP_REGULAR_EXPRESSION "\\[  SKIPPED \\]")

# The schedule of pipelines, simulated: the busiest of four equal stages idles at most 15 %.
add_test(NAME bench_pipes COMMAND btcchat-bench-pipes --check)
add_test(NAME bench_pipes_equal COMMAND btcchat-bench-pipes --equal --check)
set_tests_properties(bench_pipes bench_pipes_equal PROPERTIES LABELS unit TIMEOUT 60)
