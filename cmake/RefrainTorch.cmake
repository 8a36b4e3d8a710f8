# Finds LibTorch and makes the target `torch`. Looked for in: CMAKE_PREFIX_PATH or Torch_DIR, if given; the directory in
# the environment variable LIBTORCH; the wheel that scripts/setup put into .venv.

if(NOT CMAKE_PREFIX_PATH AND (NOT Torch_DIR OR DEFINED CACHE{REFRAIN_LIBTORCH}))
  if(DEFINED ENV{LIBTORCH} AND NOT "$ENV{LIBTORCH}" STREQUAL "")
    get_filename_component(_root "$ENV{LIBTORCH}" ABSOLUTE BASE_DIR ${PROJECT_SOURCE_DIR})
  else()
    file(GLOB _root ${PROJECT_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch)
  endif()
  if(NOT EXISTS "${_root}/share/cmake/Torch/TorchConfig.cmake")
    message(FATAL_ERROR "refrain: found no LibTorch in '${_root}'. Expected share/cmake/Torch/TorchConfig.cmake in it. "
      "Run scripts/setup, or set LIBTORCH to the directory of a LibTorch.")
  endif()
  if(NOT "${REFRAIN_LIBTORCH}" STREQUAL "${_root}")
    # another LibTorch than last time: forget what was found in that one
    foreach(_found Torch_DIR Caffe2_DIR TORCH_LIBRARY C10_LIBRARY c10_LIBRARY)
      unset(${_found} CACHE)
    endforeach()
  endif()
  set(REFRAIN_LIBTORCH "${_root}" CACHE INTERNAL "The LibTorch that was found without CMAKE_PREFIX_PATH")
  set(Torch_ROOT "${_root}")
  set(Caffe2_ROOT "${_root}")
endif()

# The wheel of PyPI is built with CUDA, and its TorchConfig.cmake stops where there is no CUDA toolkit. Its CPU half
# works all the same: name the libraries ourselves.
option(REFRAIN_TORCH_CPU_HALF "Link only the CPU libraries of LibTorch, without its CMake files" OFF)
set(_cpu_half ${REFRAIN_TORCH_CPU_HALF})
if(REFRAIN_LIBTORCH AND EXISTS "${REFRAIN_LIBTORCH}/lib/libtorch_cuda.so")
  find_package(CUDAToolkit QUIET)
  if(NOT CUDAToolkit_FOUND)
    set(_cpu_half ON)
  endif()
endif()

if(_cpu_half AND REFRAIN_LIBTORCH)
  message(STATUS "LibTorch: CPU half of ${REFRAIN_LIBTORCH}")
  set(TORCH_INSTALL_PREFIX ${REFRAIN_LIBTORCH})
  foreach(_lib c10 torch_cpu)
    add_library(refrain_${_lib} SHARED IMPORTED)
    set_target_properties(refrain_${_lib} PROPERTIES IMPORTED_LOCATION ${TORCH_INSTALL_PREFIX}/lib/lib${_lib}.so)
  endforeach()
  add_library(torch INTERFACE IMPORTED)
  target_link_libraries(torch INTERFACE -Wl,--no-as-needed refrain_torch_cpu refrain_c10 -Wl,--as-needed)
  target_compile_definitions(torch INTERFACE USE_DISTRIBUTED USE_C10D_GLOO USE_RPC USE_TENSORPIPE)
  target_include_directories(torch INTERFACE ${TORCH_INSTALL_PREFIX}/include
    ${TORCH_INSTALL_PREFIX}/include/torch/csrc/api/include)
else()
  set(kineto_LIBRARY c10 CACHE INTERNAL "A static library that no wheel has: stops TorchConfig.cmake's warning of it")
  find_package(Torch CONFIG REQUIRED)
  if(TARGET caffe2::mkl) # adds the rpath entries of the machine that built the wheel
    set_target_properties(caffe2::mkl PROPERTIES INTERFACE_LINK_DIRECTORIES "")
  endif()
endif()
