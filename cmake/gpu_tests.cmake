# tests/gpu_host/test_*.c: the hand-written CUDA kernels against the plain-loop operators. One source, two programs: test_NAME runs
# the kernels on the host shim (label gpu-host, needs no toolkit), gpu_NAME on the device (label gpu, skips where there is none).
# Neither links btc_ops: its own kernels would have the same names.
if(NOT BTC_SANITIZE MATCHES thread) # fibers and ThreadSanitizer do not go together, and a shim has one thread
  set(shim_sources ${CMAKE_SOURCE_DIR}/kernels/cuda/shim/fiber.cc ${CMAKE_SOURCE_DIR}/kernels/cuda/shim/launch.cc
    ${CMAKE_SOURCE_DIR}/kernels/cuda/shim/memory.cc ${CMAKE_SOURCE_DIR}/kernels/cuda/shim/tape.cc)
  foreach(source ${BTC_CUDA_SOURCES}) # each as C++, by a file that includes it
    get_filename_component(name ${source} NAME_WE)
    set(wrapper ${CMAKE_BINARY_DIR}/gpu_host/${name}.cc)
    file(CONFIGURE OUTPUT ${wrapper} CONTENT "#include \"kernels/cuda/${name}.cu\"\n")
    list(APPEND shim_sources ${wrapper})
  endforeach()
  add_library(btc_kernels_cuda_host STATIC ${shim_sources})
  target_include_directories(btc_kernels_cuda_host PUBLIC ${CMAKE_SOURCE_DIR})
  # A device faults on a vector access that is not aligned, where x86 does not care. UBSan has the check already, and says more.
  if(NOT BTC_SANITIZE MATCHES undefined)
    set(BTC_SHIM_CHECKS -fsanitize=alignment -fsanitize-undefined-trap-on-error)
    target_compile_options(btc_kernels_cuda_host PRIVATE ${BTC_SHIM_CHECKS})
  endif()

  # The ground truth: plain operators, the sampler, the resizer.
  add_library(btc_gpu_truth STATIC ${CMAKE_SOURCE_DIR}/ops/plain.c ${CMAKE_SOURCE_DIR}/ops/dtype.c ${CMAKE_SOURCE_DIR}/engine/sampler.c
    ${CMAKE_SOURCE_DIR}/engine/image_resize.c)
  target_link_libraries(btc_gpu_truth PUBLIC btc_base PkgConfig::CMOCKA m)
  target_include_directories(btc_gpu_truth PUBLIC ${CMAKE_SOURCE_DIR} ${CMAKE_SOURCE_DIR}/tests/support)

  function(btc_gpu_test file program label backend library)
    add_executable(${program} ${file} ${CMAKE_SOURCE_DIR}/tests/gpu_host/gpu.c ${CMAKE_SOURCE_DIR}/tests/gpu_host/${backend}.c)
    target_link_libraries(${program} PRIVATE btc_gpu_truth ${library})
    set_target_properties(${program} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests LINKER_LANGUAGE CXX)
    file(READ ${file} text)
    string(REGEX MATCHALL "cmocka_unit_test[a-z_]*\\([a-z0-9_]+" entries "${text}")
    foreach(entry ${entries})
      string(REGEX REPLACE ".*\\(" "" test "${entry}")
      add_test(NAME ${program}.${test} COMMAND ${program} ${test})
      set_tests_properties(${program}.${test} PROPERTIES LABELS ${label} TIMEOUT 300 ENVIRONMENT "${BTC_TEST_ENVIRONMENT}"
        SKIP_REGULAR_EXPRESSION "\\[  SKIPPED \\]")
    endforeach()
  endfunction()

  file(GLOB gpu_files CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/gpu_host/test_*.c)
  foreach(file ${gpu_files})
    get_filename_component(program ${file} NAME_WE)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${file})
    btc_gpu_test(${file} ${program} gpu-host gpu_shim btc_kernels_cuda_host)
    if(BTC_HAVE_CUDA AND NOT program STREQUAL test_shim)
      string(REGEX REPLACE "^test_" "gpu_" device_program ${program})
      btc_gpu_test(${file} ${device_program} gpu gpu_device btc_kernels_cuda)
    endif()
  endforeach()
  target_sources(test_shim PRIVATE ${CMAKE_SOURCE_DIR}/tests/gpu_host/shim_kernels.cc)
  set_source_files_properties(${CMAKE_SOURCE_DIR}/tests/gpu_host/shim_kernels.cc PROPERTIES COMPILE_OPTIONS "${BTC_SHIM_CHECKS}")
endif()

# The CUDA backend itself (ops/cuda*.c) without a device: the engine over a runtime that is the host's (tests/gpu_host/fake), kernels on
# the shim, products by plain loops. Needs the toolkit's headers. Also as a program: btcchat-gpu-host --device cuda.
if(BTC_HAVE_CUDA AND NOT BTC_SANITIZE MATCHES thread)
  file(GLOB fake_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/ops/*.c ${CMAKE_SOURCE_DIR}/tests/gpu_host/fake/*.c)
  list(FILTER fake_sources EXCLUDE REGEX "/ops/cuda_(lt|nvml)\\.c$")
  add_library(btc_ops_fake OBJECT ${fake_sources})
  target_include_directories(btc_ops_fake PUBLIC ${CMAKE_SOURCE_DIR})
  target_include_directories(btc_ops_fake SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
  target_compile_definitions(btc_ops_fake PRIVATE BTC_HAVE_CUDA)
  function(btc_fake_program program)
    add_executable(${program} ${ARGN} $<TARGET_OBJECTS:btc_ops_fake>)
    target_link_libraries(${program} PRIVATE "$<LINK_LIBRARY:WHOLE_ARCHIVE,btc_kernels_cuda_host>" btc_test_support btc_cli)
    set_target_properties(${program} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests LINKER_LANGUAGE CXX)
    target_compile_definitions(${program} PRIVATE BTC_VERSION="${PROJECT_VERSION}")
    set_target_properties(${program} PROPERTIES ENABLE_EXPORTS ON) # of the runtime's stand-in, for NCCL's
    if(BTC_HAVE_NCCL)
      add_dependencies(${program} btc_fake_nccl)
    endif()
  endfunction()
  if(BTC_HAVE_NCCL) # programs load it in NCCL's place, and it finds their streams
    add_library(btc_fake_nccl SHARED ${CMAKE_SOURCE_DIR}/tests/gpu_host/fake_nccl/fake_nccl.c)
    target_include_directories(btc_fake_nccl SYSTEM PRIVATE ${BTC_NCCL_INCLUDE} ${CUDAToolkit_INCLUDE_DIRS})
    target_link_libraries(btc_fake_nccl PRIVATE Threads::Threads ${CMAKE_DL_LIBS})
    set_target_properties(btc_fake_nccl PROPERTIES OUTPUT_NAME fake_nccl LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
    list(APPEND BTC_TEST_ENVIRONMENT "BTCCHAT_NCCL=$<TARGET_FILE:btc_fake_nccl>")
  endif()
  list(APPEND BTC_TEST_ENVIRONMENT "BTCCHAT_GPU_HOST=$<TARGET_FILE:btcchat-gpu-host>")
  btc_fake_program(btcchat-gpu-host ${CMAKE_SOURCE_DIR}/cli/main.c)
  file(GLOB engine_files CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/gpu_engine/test_*.c)
  if(NOT BTC_HAVE_NCCL)
    list(FILTER engine_files EXCLUDE REGEX "nccl")
  endif()
  foreach(file ${engine_files})
    get_filename_component(program ${file} NAME_WE)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${file})
    btc_fake_program(${program} ${file})
    add_dependencies(${program} btcchat-gpu-host)
    file(READ ${file} text)
    string(REGEX MATCHALL "cmocka_unit_test[a-z_]*\\([a-z0-9_]+" entries "${text}")
    foreach(entry ${entries})
      string(REGEX REPLACE ".*\\(" "" test "${entry}")
      add_test(NAME ${program}.${test} COMMAND ${program} ${test})
      set_tests_properties(${program}.${test} PROPERTIES LABELS gpu-host TIMEOUT 300 ENVIRONMENT "${BTC_TEST_ENVIRONMENT}"
        SKIP_REGULAR_EXPRESSION "\\[  SKIPPED \\]")
    endforeach()
  endforeach()
endif()

# The one test of the backend that needs no stand-in, on a card: what travels beside the operators.
if(BTC_HAVE_CUDA)
  add_executable(gpu_pictures ${CMAKE_SOURCE_DIR}/tests/gpu_engine/test_cuda_pictures.c)
  target_link_libraries(gpu_pictures PRIVATE btc_test_support btc_engine)
  target_compile_definitions(gpu_pictures PRIVATE BTC_TEST_ON_CARD)
  set_target_properties(gpu_pictures PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests LINKER_LANGUAGE CXX)
  add_test(NAME gpu_pictures COMMAND gpu_pictures)
  set_tests_properties(gpu_pictures PROPERTIES LABELS gpu TIMEOUT 300 SKIP_REGULAR_EXPRESSION "\\[  SKIPPED \\]")
endif()

# Registers, shared memory and spills of every kernel, from the compiler's report.
if(BTC_HAVE_CUDA)
  add_test(NAME gpu_resources COMMAND ${CMAKE_SOURCE_DIR}/tests/gpu_host/resources.sh $<TARGET_OBJECTS:btc_kernels_cuda>
    COMMAND_EXPAND_LISTS)
  set_tests_properties(gpu_resources PROPERTIES LABELS gpu-host TIMEOUT 60)
endif()
