# bench/: measuring programs. Built with everything else so that they keep compiling; run by hand.
add_executable(btcchat-bench-kernels ${CMAKE_SOURCE_DIR}/bench/kernels.c)
target_link_libraries(btcchat-bench-kernels PRIVATE btc_ops btc_dnnl)
