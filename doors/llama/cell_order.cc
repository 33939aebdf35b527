// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "cell_order.h"

#include <cstddef>

namespace coppice::door {

void CellOrder::Write(std::span<const std::int64_t> cells) {
  for (const std::int64_t cell : cells) {
    if (cell < 0 || cell >= this->cells()) continue;
    stamps_[static_cast<std::size_t>(cell)] = ++clock_;
    Compare(cell - 1);
    Compare(cell);
  }
}

bool CellOrder::Ordered(std::int64_t begin, std::int64_t end) const {
  const auto descent = descents_.lower_bound(begin);
  return descent == descents_.end() || *descent + 1 >= end;
}

void CellOrder::Compare(std::int64_t cell) {
  if (cell < 0 || cell + 1 >= cells()) return;
  const auto i = static_cast<std::size_t>(cell);
  if (stamps_[i] > stamps_[i + 1]) {
    descents_.insert(cell);
  } else {
    descents_.erase(cell);
  }
}

}  // namespace coppice::door
