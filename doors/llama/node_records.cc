// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "node_records.h"

#include <cstring>
#include <new>

namespace coppice::door {

NodeRecords::NodeRecords(ggml_custom_op_t run, Door* door)
    : run_(run),
      door_(door),
      context_(ggml_init(
          {.mem_size = 4 * ggml_tensor_overhead(), .mem_buffer = nullptr, .no_alloc = true})) {
  if (context_ == nullptr) throw std::bad_alloc();
}

NodeRecords::~NodeRecords() { ggml_free(context_); }

NodeRecord* NodeRecords::Find(ggml_tensor& node) {
  if (node.op == GGML_OP_FLASH_ATTN_EXT) return &Renew(node);
  if (node.op != GGML_OP_CUSTOM) return nullptr;
  const auto found = records_.find(&node);
  if (found == records_.end()) return nullptr;
  NodeRecord& record = *found->second;
  const bool ours =
      std::memcmp(node.op_params, record.custom_params.data(), sizeof(node.op_params)) == 0;
  return ours ? &record : nullptr;
}

// The address may have held a node of an earlier graph: everything is learnt again.
NodeRecord& NodeRecords::Renew(ggml_tensor& node) {
  std::unique_ptr<NodeRecord>& slot = records_[&node];
  if (!slot) slot = std::make_unique<NodeRecord>();
  slot->node = &node;
  slot->door = door_;
  std::memcpy(slot->flash_params.data(), node.op_params, sizeof(node.op_params));

  ggml_reset(context_);
  const ggml_tensor* custom = ggml_custom_4d(context_, GGML_TYPE_F32, 1, 1, 1, 1, &argument_, 0,
                                             run_, GGML_N_TASKS_MAX, slot.get());
  std::memcpy(slot->custom_params.data(), custom->op_params, sizeof(custom->op_params));
  return *slot;
}

void NodeRecords::Take(NodeRecord& record) {
  record.node->op = GGML_OP_CUSTOM;
  std::memcpy(record.node->op_params, record.custom_params.data(), record.custom_params.size());
}

void NodeRecords::GiveBack(NodeRecord& record) {
  record.node->op = GGML_OP_FLASH_ATTN_EXT;
  std::memcpy(record.node->op_params, record.flash_params.data(), record.flash_params.size());
}

}  // namespace coppice::door
