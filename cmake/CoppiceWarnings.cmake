# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#
# coppice_warnings(target): the warnings that our own code is free of. Two are left out. Fields that a
# designated initialiser does not name have their defaults, which is why it is used. And g++ 12 finds
# overlapping copies in any `"text" + std::string` (GCC bug 105651).
function(coppice_warnings target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wno-missing-field-initializers
    $<$<AND:$<CXX_COMPILER_ID:GNU>,$<VERSION_LESS:$<CXX_COMPILER_VERSION>,13>>:-Wno-restrict>
    $<$<BOOL:${COPPICE_WERROR}>:-Werror>)
endfunction()
