include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_DATADIR}/cmake/recycled)

target_include_directories(recycled INTERFACE $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
install(DIRECTORY include/recycled DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.hpp")
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})

install(TARGETS recycled EXPORT recycledTargets)
install(EXPORT recycledTargets NAMESPACE recycled:: DESTINATION ${package_dir})

configure_package_config_file(cmake/recycledConfig.cmake.in ${PROJECT_BINARY_DIR}/recycledConfig.cmake
  INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/recycledConfigVersion.cmake
  COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES ${PROJECT_BINARY_DIR}/recycledConfig.cmake ${PROJECT_BINARY_DIR}/recycledConfigVersion.cmake
  DESTINATION ${package_dir})
