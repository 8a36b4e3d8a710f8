file(REMOVE_RECURSE ${WORK}/prefix ${WORK}/moved ${WORK}/build)
set(checked COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${CMAKE_COMMAND} --install ${BUILD} --prefix ${WORK}/prefix OUTPUT_QUIET ${checked})

# an installed tree may be moved, and must not point back into the build
file(RENAME ${WORK}/prefix ${WORK}/moved)
file(GLOB_RECURSE installed ${WORK}/moved/*.cmake)
foreach(file IN LISTS installed)
  file(READ ${file} text)
  string(FIND "${text}" "${BUILD}/" found)
  if(NOT found EQUAL -1)
    message(FATAL_ERROR "${file} names the build directory ${BUILD}")
  endif()
endforeach()

execute_process(COMMAND ${CMAKE_COMMAND} -S ${SOURCE} -B ${WORK}/build -G ${GENERATOR} -DCMAKE_MAKE_PROGRAM=${MAKE}
  -DCMAKE_CXX_COMPILER=${CXX} "-DCMAKE_CXX_COMPILER_LAUNCHER=${LAUNCHER}" "-DCMAKE_PREFIX_PATH=${WORK}/moved;${TORCH}"
  -DREFRAIN_VERSION=${VERSION} ${checked})
execute_process(COMMAND ${CMAKE_COMMAND} --build ${WORK}/build ${checked})
execute_process(COMMAND ${WORK}/build/consumer ${checked})
