# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#
# One set of objects, two libraries: coppice::static is libcoppice.a, coppice::shared libcoppice.so.
# coppice::coppice is the one that BUILD_SHARED_LIBS asks for; our own programs link the static one.
foreach(kind STATIC SHARED)
  string(TOLOWER ${kind} name)
  add_library(coppice_${name} ${kind} $<TARGET_OBJECTS:coppice_objects>)
  add_library(coppice::${name} ALIAS coppice_${name})
  target_include_directories(coppice_${name} INTERFACE
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>
    $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
  target_compile_features(coppice_${name} INTERFACE cxx_std_20)
  target_link_libraries(coppice_${name} PUBLIC Threads::Threads)
  set_target_properties(coppice_${name} PROPERTIES
    OUTPUT_NAME coppice
    EXPORT_NAME ${name}
    LINKER_LANGUAGE CXX
    VERSION ${PROJECT_VERSION}
    SOVERSION ${PROJECT_VERSION_MAJOR}
    ARCHIVE_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}
    LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR})
endforeach()

if(BUILD_SHARED_LIBS)
  add_library(coppice::coppice ALIAS coppice_shared)
else()
  add_library(coppice::coppice ALIAS coppice_static)
endif()
