// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Turns flash-attention nodes of a llama.cpp graph into custom operations that run here, and back.
// A graph lives for many batches, so a taken node is met again as a custom operation; its record
// knows what it was. What runs in it, and when, is door.cc's business.
#pragma once

#include <ggml.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>

namespace coppice {
class Attention;
}

namespace coppice::door {

class Door;

// What one node was, and the run that is planned for it.
struct NodeRecord {
  using Params = std::array<std::byte, GGML_MAX_OP_PARAMS>;

  ggml_tensor* node = nullptr;
  Params flash_params;
  Params custom_params;

  Door* door = nullptr;
  Attention* attention = nullptr;
  bool prefill = false;
  int items = 0;
  std::atomic<int> next_item = 0;
  std::atomic<int> threads_done = 0;
  std::atomic<std::int64_t> start_ns = 0;  // 0: no thread has come yet
};

class NodeRecords {
 public:
  // run(node, thread, threads, record) is called by each of llama.cpp's threads.
  NodeRecords(ggml_custom_op_t run, Door* door);
  ~NodeRecords();
  NodeRecords(const NodeRecords&) = delete;
  NodeRecords& operator=(const NodeRecords&) = delete;

  // The record of a flash-attention node, or of one that we took earlier; null for other nodes.
  NodeRecord* Find(ggml_tensor& node);

  static void Take(NodeRecord& record);
  static void GiveBack(NodeRecord& record);

 private:
  NodeRecord& Renew(ggml_tensor& node);

  ggml_custom_op_t run_;
  Door* door_;
  ggml_context* context_;  // for one node at a time, to learn what a custom operation looks like
  ggml_tensor* argument_ = nullptr;
  std::unordered_map<const ggml_tensor*, std::unique_ptr<NodeRecord>> records_;
};

}  // namespace coppice::door
