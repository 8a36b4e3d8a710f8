# refrain_highs: HiGHS, the solver of linear programs, where the header of its C API is there (scripts/setup puts it into .venv). It is loaded
# when first used, so nothing links with it; without it the planner has no linear programs and says so.

option(REFRAIN_HIGHS "Let the planner use HiGHS, if it is found" ON)
file(GLOB _highs_venv ${PROJECT_SOURCE_DIR}/.venv/lib/python3*/site-packages/highsbox/highs_dist)
find_path(REFRAIN_HIGHS_INCLUDE interfaces/highs_c_api.h HINTS ${_highs_venv} PATH_SUFFIXES include/highs highs)
find_library(REFRAIN_HIGHS_LIBRARY highs HINTS ${_highs_venv} PATH_SUFFIXES lib)
add_library(refrain_highs INTERFACE)
if(REFRAIN_HIGHS AND REFRAIN_HIGHS_INCLUDE AND REFRAIN_HIGHS_LIBRARY)
  target_include_directories(refrain_highs SYSTEM INTERFACE ${REFRAIN_HIGHS_INCLUDE})
  target_compile_definitions(refrain_highs INTERFACE REFRAIN_HIGHS_LIBRARY="${REFRAIN_HIGHS_LIBRARY}")
endif()
target_link_libraries(refrain_highs INTERFACE ${CMAKE_DL_LIBS})
