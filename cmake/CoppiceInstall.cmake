# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#
# What `cmake --install` lays down: both libraries, the headers, the command, and what other builds
# need to find them (CMake package, pkg-config). The door into llama.cpp is a component of its own,
# because it needs llama.cpp where it is used.
include(CMakePackageConfigHelpers)
set(_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/coppice)

install(DIRECTORY include/coppice DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS coppice_static coppice_shared EXPORT coppiceTargets)
install(EXPORT coppiceTargets NAMESPACE coppice:: DESTINATION ${_package_dir})

if(TARGET coppice_llama)
  set_target_properties(coppice_llama PROPERTIES EXPORT_NAME llama
    ARCHIVE_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR})
  install(TARGETS coppice_llama EXPORT coppiceLlamaTargets)
  install(EXPORT coppiceLlamaTargets NAMESPACE coppice:: DESTINATION ${_package_dir})
  install(FILES cmake/FindLlama.cmake DESTINATION ${_package_dir})
endif()
if(TARGET coppice_command)
  install(TARGETS coppice_command)
endif()

configure_package_config_file(cmake/coppiceConfig.cmake.in
  ${PROJECT_BINARY_DIR}/cmake/coppiceConfig.cmake INSTALL_DESTINATION ${_package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/cmake/coppiceConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
# Relative, so that an install tree may be moved.
file(RELATIVE_PATH _prefix_from_pc ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
configure_file(cmake/coppice.pc.in ${PROJECT_BINARY_DIR}/cmake/coppice.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/cmake/coppiceConfig.cmake
              ${PROJECT_BINARY_DIR}/cmake/coppiceConfigVersion.cmake
        DESTINATION ${_package_dir})
install(FILES ${PROJECT_BINARY_DIR}/cmake/coppice.pc
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
