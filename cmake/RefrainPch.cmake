# The library itself: LibTorch's headers that most of its sources include, precompiled once. Each source still includes what it uses.
if(REFRAIN_PCH)
  target_precompile_headers(refrain_objects PRIVATE
    <ATen/Context.h> <ATen/ThreadLocalState.h> <ATen/core/Tensor.h> <ATen/core/dispatch/Dispatcher.h> <ATen/core/ivalue.h>
    <ATen/core/stack.h> <ATen/record_function.h> <c10/core/Storage.h> <c10/core/impl/LocalDispatchKeySet.h>
    <c10/util/Exception.h> <c10/util/SmallVector.h> <torch/csrc/autograd/engine.h> <torch/csrc/autograd/function.h>
    <torch/csrc/autograd/graph_task.h> <torch/csrc/autograd/saved_variable_hooks.h> <torch/csrc/autograd/variable.h>
    <torch/library.h>)
  if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
    target_compile_options(refrain_objects PRIVATE -fpch-preprocess) # ccache asks for it
  endif()
endif()

# refrain_precompile(target): compiles the target with a precompiled torch/torch.h, which its sources may then include at
# no cost. The header is compiled once for the whole build. For targets that link refrain and whose sources use
# torch/torch.h; not for refrain itself, whose sources include the least they need.

if(REFRAIN_PCH)
  file(CONFIGURE OUTPUT ${PROJECT_BINARY_DIR}/pch/torch.cc CONTENT "")
  add_library(refrain_torch_pch OBJECT EXCLUDE_FROM_ALL ${PROJECT_BINARY_DIR}/pch/torch.cc)
  target_compile_features(refrain_torch_pch PRIVATE cxx_std_20)
  target_link_libraries(refrain_torch_pch PRIVATE torch Threads::Threads)
  target_precompile_headers(refrain_torch_pch PRIVATE <torch/torch.h>)
  if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
    target_compile_options(refrain_torch_pch PRIVATE -fpch-preprocess) # ccache asks for it
  endif()
endif()

function(refrain_precompile target)
  get_target_property(_done ${target} PRECOMPILE_HEADERS_REUSE_FROM)
  if(NOT REFRAIN_PCH OR _done)
    return()
  endif()
  target_precompile_headers(${target} REUSE_FROM refrain_torch_pch)
  # the header is compiled with -fPIC, so its users must be: CMake would give an executable -fPIE
  set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
  target_compile_options(${target} PRIVATE -fPIC $<$<CXX_COMPILER_ID:GNU>:-fpch-preprocess>)
endfunction()
