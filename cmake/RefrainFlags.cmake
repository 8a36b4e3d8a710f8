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
endif()

add_library(refrain_warnings INTERFACE)
target_compile_options(refrain_warnings INTERFACE -Wall -Wextra -Wno-unused-parameter
  $<$<BOOL:${REFRAIN_WERROR}>:-Werror>)
if(REFRAIN_SANITIZE)
  # everywhere, as a precompiled header and its users must agree; `vptr` would need type information that LibTorch hides
  add_compile_options(-fsanitize=${REFRAIN_SANITIZE} -fno-sanitize-recover=all -fno-sanitize=vptr -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${REFRAIN_SANITIZE})
endif()

find_program(REFRAIN_CCACHE ccache)
if(REFRAIN_CCACHE AND PROJECT_IS_TOP_LEVEL AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER env CCACHE_SLOPPINESS=pch_defines,time_macros ${REFRAIN_CCACHE})
endif()
