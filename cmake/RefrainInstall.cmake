# Install rules: the library, its headers, `find_package(refrain)` and the tool.

include(CMakePackageConfigHelpers)
set(_config_dir ${CMAKE_INSTALL_LIBDIR}/cmake/refrain)

# said here, as CMAKE_INSTALL_RPATH_USE_LINK_PATH leaves out what lies in the source tree, and so does .venv
set_target_properties(refrain PROPERTIES INSTALL_RPATH ${TORCH_INSTALL_PREFIX}/lib)

install(TARGETS refrain EXPORT refrainTargets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
if(TARGET refrain_cli)
  set_target_properties(refrain_cli PROPERTIES
    INSTALL_RPATH "$ORIGIN/../${CMAKE_INSTALL_LIBDIR};${TORCH_INSTALL_PREFIX}/lib")
endif()
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/refrain DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN *.h)
install(EXPORT refrainTargets NAMESPACE refrain:: DESTINATION ${_config_dir})
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/refrainConfig.cmake.in
  ${PROJECT_BINARY_DIR}/refrainConfig.cmake INSTALL_DESTINATION ${_config_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/refrainConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/refrainConfig.cmake ${PROJECT_BINARY_DIR}/refrainConfigVersion.cmake
  DESTINATION ${_config_dir})
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
