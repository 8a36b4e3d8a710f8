# refrain_nccl: NCCL between CUDA devices, where LibTorch is a CUDA build and nccl.h is there. Its code is in LibTorch.

option(REFRAIN_NCCL "Use NCCL for data parallel training on CUDA devices, if LibTorch and nccl.h allow" ON)
find_path(REFRAIN_NCCL_INCLUDE nccl.h)
add_library(refrain_nccl INTERFACE)
if(REFRAIN_NCCL AND REFRAIN_NCCL_INCLUDE AND TARGET torch_cuda)
  target_include_directories(refrain_nccl SYSTEM INTERFACE ${REFRAIN_NCCL_INCLUDE})
  target_compile_definitions(refrain_nccl INTERFACE REFRAIN_NCCL USE_C10D_NCCL)
endif()
