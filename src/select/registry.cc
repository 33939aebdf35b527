// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// From a method's name to its selector. It does not check the settings: Validate() has.
#include <memory>
#include <string>
#include <vector>

#include "coppice/settings.h"
#include "coppice/status.h"
#include "select/methods.h"
#include "select/selector.h"

namespace coppice {
namespace {

struct Method {
  const char* name;
  std::unique_ptr<Selector> (*make)(const AttentionSettings&);
};

#define COPPICE_LIST_METHOD(name, function) {name, function},
constexpr Method kMethods[] = {COPPICE_SELECT_METHODS(COPPICE_LIST_METHOD)};
#undef COPPICE_LIST_METHOD

}  // namespace

Result<std::unique_ptr<Selector>> MakeSelector(const AttentionSettings& settings) {
  std::string known;
  for (const Method& method : kMethods) {
    if (settings.method == method.name) return method.make(settings);
    known += known.empty() ? method.name : std::string(", ") + method.name;
  }
  return Status::NotFound("no selector is called \"" + settings.method + "\": choose one of " +
                          known);
}

std::vector<std::string> SelectorNames() {
  std::vector<std::string> names;
  for (const Method& method : kMethods) names.emplace_back(method.name);
  return names;
}

}  // namespace coppice
