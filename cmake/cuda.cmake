# The CUDA kernels: found, not required. BTC_CUDA=AUTO builds them where nvcc is, ON insists, OFF leaves them out. Sanitized builds
# leave them out unless told ON (the runtime and AddressSanitizer do not agree on address space).
# Sets BTC_HAVE_CUDA and, when it is true, the library btc_kernels_cuda. The kernels on the host shim need no toolkit; they are part
# of the tests (cmake/gpu_tests.cmake).
set(BTC_CUDA AUTO CACHE STRING "CUDA kernels: AUTO, ON or OFF")
set_property(CACHE BTC_CUDA PROPERTY STRINGS AUTO ON OFF)
set(BTC_HAVE_CUDA OFF)
if(BTC_CUDA STREQUAL ON)
  find_package(CUDAToolkit REQUIRED)
elseif(BTC_CUDA STREQUAL AUTO AND NOT BTC_SANITIZE)
  find_package(CUDAToolkit QUIET)
endif()
if(CUDAToolkit_FOUND AND CUDAToolkit_NVCC_EXECUTABLE AND NOT BTC_CUDA STREQUAL OFF)
  set(BTC_HAVE_CUDA ON)
  set(CMAKE_CUDA_COMPILER ${CUDAToolkit_NVCC_EXECUTABLE})
  set(CMAKE_CUDA_STANDARD 17)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  # A100 and H100/H200, and PTX for what comes after them.
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90)
  set(CMAKE_CUDA_FLAGS_RELEASE "-O3")
  enable_language(CUDA)
  message(STATUS "CUDA kernels: nvcc ${CMAKE_CUDA_COMPILER_VERSION}")
else()
  message(STATUS "CUDA kernels: not built (BTC_CUDA=${BTC_CUDA})")
endif()

# The NCCL link of pipelines (worker/link_nccl.c) needs its header; the library is loaded while the program runs.
set(BTC_HAVE_NCCL OFF)
if(BTC_HAVE_CUDA)
  find_path(BTC_NCCL_INCLUDE nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
  if(BTC_NCCL_INCLUDE)
    set(BTC_HAVE_NCCL ON)
  endif()
  message(STATUS "NCCL link: ${BTC_NCCL_INCLUDE}")
endif()

file(GLOB BTC_CUDA_SOURCES CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/cuda/*.cu)
if(BTC_HAVE_CUDA)
  add_library(btc_kernels_cuda STATIC ${BTC_CUDA_SOURCES})
  target_include_directories(btc_kernels_cuda PUBLIC ${CMAKE_SOURCE_DIR})
  # -fmad=false: fused multiply-adds only where a kernel writes them, so that the host shim computes the same bits.
  target_compile_options(btc_kernels_cuda PRIVATE -fmad=false -Werror=all-warnings -Xcompiler=-Wall,-Wextra,-fno-omit-frame-pointer)
  # ptxas's report of each kernel's resources, kept beside the objects for a test.
  target_compile_options(btc_kernels_cuda PRIVATE -Xptxas=-v)
  set(launcher ${CMAKE_SOURCE_DIR}/cmake/nvcc_log.sh ${CMAKE_CUDA_COMPILER_LAUNCHER})
  set_target_properties(btc_kernels_cuda PROPERTIES CUDA_COMPILER_LAUNCHER "${launcher}")
  set_target_properties(btc_kernels_cuda PROPERTIES POSITION_INDEPENDENT_CODE ON CUDA_RUNTIME_LIBRARY Static)
  target_link_libraries(btc_kernels_cuda PUBLIC CUDA::cudart_static)
endif()
