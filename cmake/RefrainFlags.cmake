# Flags for our own code, in `refrain_warnings`, and the compiler cache. Nothing here reaches who links refrain.

set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(PROJECT_IS_TOP_LEVEL)
  set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
  set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib)
  if(NOT CMAKE_BUILD_TYPE)
    set(CMAKE_BUILD_TYPE Release CACHE STRING "Debug, Release or RelWithDebInfo" FORCE)
  endif()
  set(CMAKE_CXX_FLAGS_RELEASE "-O2 -DNDEBUG")
  set(CMAKE_CXX_FLAGS_DEBUG "-O1 -g")
  set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O1 -g")
  if(REFRAIN_SANITIZE) # lines in stack traces are enough; Debug compiles in half the time, for CI
    set(CMAKE_CXX_FLAGS_DEBUG "-O0 -g1")
    set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O1 -g1")
  endif()
endif()

# REFRAIN_WERROR=AUTO: errors with the compiler that CI builds with, so that all who have it share one configuration; a later one may warn of
# what nobody has seen. Sanitizers make GCC see what is not there.
set(_werror ${REFRAIN_WERROR})
if(_werror STREQUAL AUTO)
  set(_werror OFF)
  if(PROJECT_IS_TOP_LEVEL AND NOT REFRAIN_SANITIZE AND CMAKE_CXX_COMPILER_ID STREQUAL GNU
      AND CMAKE_CXX_COMPILER_VERSION VERSION_GREATER_EQUAL 12 AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    set(_werror ON)
  endif()
endif()

add_library(refrain_warnings INTERFACE)
target_compile_options(refrain_warnings INTERFACE -Wall -Wextra -Wno-unused-parameter -Wshadow -Wconversion -Wold-style-cast
  -Wnon-virtual-dtor $<$<BOOL:${_werror}>:-Werror>)
if(REFRAIN_SANITIZE)
  # everywhere, as a precompiled header and its users must agree; `vptr` would need type information that LibTorch hides
  add_compile_options(-fsanitize=${REFRAIN_SANITIZE} -fno-sanitize-recover=all -fno-sanitize=vptr -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${REFRAIN_SANITIZE})
endif()

# refrain_unite(target [BATCH n]): with REFRAIN_UNITY the sources of a folder, or n sources at a time, compile as one: from nothing in a third of
# the time. Two of them may then not use one name in anonymous namespaces, as those of the folders left out here do.
option(REFRAIN_UNITY "Compile several sources as one: faster from nothing, slower after a change" OFF)
function(refrain_unite target)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "BATCH" "")
  if(NOT REFRAIN_UNITY)
    return()
  endif()
  set_target_properties(${target} PROPERTIES UNITY_BUILD ON)
  target_compile_options(${target} PRIVATE $<$<CXX_COMPILER_ID:GNU>:-Wno-subobject-linkage>)
  if(arg_BATCH)
    set_target_properties(${target} PROPERTIES UNITY_BUILD_MODE BATCH UNITY_BUILD_BATCH_SIZE ${arg_BATCH})
    return()
  endif()
  set_target_properties(${target} PROPERTIES UNITY_BUILD_MODE GROUP)
  get_target_property(_sources ${target} SOURCES)
  foreach(_source IN LISTS _sources)
    get_filename_component(_folder ${_source} DIRECTORY)
    get_filename_component(_folder ${_folder} NAME)
    if(NOT _folder MATCHES "^(base|intercept|plan)$" AND NOT _source MATCHES "typed_ops.cc$")
      set_source_files_properties(${_source} PROPERTIES UNITY_GROUP ${_folder})
    endif()
  endforeach()
endfunction()

find_program(REFRAIN_CCACHE ccache)
if(REFRAIN_CCACHE AND PROJECT_IS_TOP_LEVEL AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER env CCACHE_SLOPPINESS=pch_defines,time_macros ${REFRAIN_CCACHE})
endif()
