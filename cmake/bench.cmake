# bench/: measuring programs, built with everything else so that they keep compiling; run by `make bench`. The kernel bench has
# oneDNN's products as a peer, so it needs that library; nothing else does.
find_package(dnnl QUIET CONFIG)
if(dnnl_FOUND)
  add_executable(btcchat-bench-kernels ${CMAKE_SOURCE_DIR}/bench/kernels.c)
  target_link_libraries(btcchat-bench-kernels PRIVATE btc_ops DNNL::dnnl)
endif()
add_executable(btcchat-bench-queue ${CMAKE_SOURCE_DIR}/bench/queue_load.c)
target_link_libraries(btcchat-bench-queue PRIVATE btc_base PkgConfig::HIREDIS Threads::Threads)
add_executable(btcchat-bench-pipes ${CMAKE_SOURCE_DIR}/bench/pipe_sim.c)
target_link_libraries(btcchat-bench-pipes PRIVATE btc_broker m)
