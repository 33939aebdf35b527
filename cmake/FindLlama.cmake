# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#
# Finds llama.cpp's shared libraries and headers.
#
# In:   COPPICE_LLAMA_DIR  an install prefix (include/, lib/) or a llama.cpp source tree that was built
#                          in its build/; empty: what tools/setup put into the cache directory
# Out:  Llama::llama       libllama, libggml, libggml-base, and their headers; users see the string
#                          COPPICE_LLAMA_BACKENDS_DIR, for ggml_backend_load_all_from_path()
#       Llama_DIR_USED     where it was found
#
# The names of the files vary: libllama.so in a build of one's own, libllama.v0.5.0.so in a package
# that may be loaded beside others. Static builds of llama.cpp are not found.

function(coppice_default_llama_dir out)
  set(home "$ENV{XDG_CACHE_HOME}")
  if(home STREQUAL "")
    set(home "$ENV{HOME}/.cache")
  endif()
  set(package ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/../third_party/llama/package.json)
  set(${out} "" PARENT_SCOPE)
  if(EXISTS ${package})
    file(READ ${package} json)
    string(JSON version GET "${json}" dependencies node-llama-cpp)
    set(${out} "${home}/coppice/libllama/${version}" PARENT_SCOPE)
  endif()
endfunction()

# The one library of that stem in the given directories, whatever its suffix.
function(coppice_llama_library out stem)
  foreach(directory IN LISTS ARGN)
    file(GLOB found "${directory}/lib${stem}.so" "${directory}/lib${stem}.v*.so"
         "${directory}/lib${stem}.dylib")
    if(found)
      list(GET found 0 first)
      set(${out} "${first}" PARENT_SCOPE)
      return()
    endif()
  endforeach()
  set(${out} "" PARENT_SCOPE)
endfunction()

set(Llama_DIR_USED "${COPPICE_LLAMA_DIR}")
if(Llama_DIR_USED STREQUAL "")
  coppice_default_llama_dir(Llama_DIR_USED)
endif()

set(_llama_lib_dirs)
foreach(_suffix lib lib64 build/bin build/lib build/src build/ggml/src bin src ggml/src)
  list(APPEND _llama_lib_dirs "${Llama_DIR_USED}/${_suffix}")
endforeach()
coppice_llama_library(Llama_LIBRARY llama ${_llama_lib_dirs})
coppice_llama_library(Llama_GGML_LIBRARY ggml ${_llama_lib_dirs})
coppice_llama_library(Llama_GGML_BASE_LIBRARY ggml-base ${_llama_lib_dirs})

set(Llama_INCLUDE_DIRS)
foreach(_header llama.h ggml.h)
  unset(_dir)
  find_path(_dir ${_header} PATHS "${Llama_DIR_USED}/include" "${Llama_DIR_USED}/ggml/include"
            NO_DEFAULT_PATH NO_CACHE)
  if(_dir)
    list(APPEND Llama_INCLUDE_DIRS "${_dir}")
  endif()
endforeach()
list(LENGTH Llama_INCLUDE_DIRS _llama_headers)
list(REMOVE_DUPLICATES Llama_INCLUDE_DIRS)
if(_llama_headers LESS 2)
  set(Llama_INCLUDE_DIRS Llama_INCLUDE_DIRS-NOTFOUND)
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Llama
  REQUIRED_VARS Llama_LIBRARY Llama_GGML_LIBRARY Llama_GGML_BASE_LIBRARY Llama_INCLUDE_DIRS
  REASON_FAILURE_MESSAGE "looked in '${Llama_DIR_USED}'. Call tools/setup llama, or give \
-DCOPPICE_LLAMA_DIR=<install prefix, or source tree with a shared build> of llama.cpp")

if(Llama_FOUND AND NOT TARGET Llama::llama)
  foreach(_part GGML_BASE GGML)
    string(TOLOWER ${_part} _name)
    add_library(Llama::${_name} SHARED IMPORTED)
    set_target_properties(Llama::${_name} PROPERTIES IMPORTED_LOCATION "${Llama_${_part}_LIBRARY}")
  endforeach()
  add_library(Llama::llama SHARED IMPORTED)
  get_filename_component(_backends "${Llama_GGML_LIBRARY}" DIRECTORY)
  set_target_properties(Llama::llama PROPERTIES
    IMPORTED_LOCATION "${Llama_LIBRARY}"
    INTERFACE_INCLUDE_DIRECTORIES "${Llama_INCLUDE_DIRS}"
    INTERFACE_LINK_LIBRARIES "Llama::ggml;Llama::ggml_base"
    INTERFACE_COMPILE_DEFINITIONS "COPPICE_LLAMA_BACKENDS_DIR=\"${_backends}\"")
endif()
