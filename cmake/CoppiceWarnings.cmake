# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
# coppice_warnings(target): the warnings that our own code is free of.
function(coppice_warnings target)
  target_compile_options(${target} PRIVATE -Wall -Wextra $<$<BOOL:${COPPICE_WERROR}>:-Werror>)
endfunction()
