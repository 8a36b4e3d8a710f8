# refrain_offload_parts: what src/offload builds on. XXH3 (headers only) for checksums; zstd where it is found.

find_path(REFRAIN_XXHASH_INCLUDE xxhash.h)
if(NOT REFRAIN_XXHASH_INCLUDE)
  message(FATAL_ERROR "refrain: found no xxhash.h. Run scripts/setup, or install libxxhash-dev.")
endif()
add_library(refrain_offload_parts INTERFACE)
target_include_directories(refrain_offload_parts SYSTEM INTERFACE ${REFRAIN_XXHASH_INCLUDE})

option(REFRAIN_ZSTD "Let offloaded bytes be compressed, if zstd is found" ON)
find_path(REFRAIN_ZSTD_INCLUDE zstd.h)
find_library(REFRAIN_ZSTD_LIBRARY zstd)
if(REFRAIN_ZSTD AND REFRAIN_ZSTD_INCLUDE AND REFRAIN_ZSTD_LIBRARY)
  target_include_directories(refrain_offload_parts SYSTEM INTERFACE ${REFRAIN_ZSTD_INCLUDE})
  target_link_libraries(refrain_offload_parts INTERFACE ${REFRAIN_ZSTD_LIBRARY})
  target_compile_definitions(refrain_offload_parts INTERFACE REFRAIN_HAVE_ZSTD)
endif()
