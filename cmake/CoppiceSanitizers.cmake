# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#
# COPPICE_SANITIZE: "address;undefined", "undefined" or "thread"; every finding ends the program.
set(COPPICE_SANITIZE "" CACHE STRING "Sanitizers to build with, as for -fsanitize=, separated by ';'")
if(COPPICE_SANITIZE)
  list(JOIN COPPICE_SANITIZE "," _sanitizers)
  add_compile_options(-fsanitize=${_sanitizers} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${_sanitizers})
endif()
