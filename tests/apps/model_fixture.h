// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// A test with the small text model and a long text at hand.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "command.h"
#include "text_model.h"

namespace coppice::testing {

class ModelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    model_ = directory_.Path("model.gguf");
    ASSERT_TRUE(WriteTextModel(model_));
    std::string text;
    for (int line = 0; text.size() < 20000; ++line) {
      text += "Line " + std::to_string(line) + " of a text that goes on and on.\n";
    }
    text_ = directory_.Write("text.txt", text);
  }

  // coppice run with the model and these arguments.
  CommandResult Run(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), {"run", "-m", model_, "--threads", "1"});
    return RunCommand(arguments);
  }

  TemporaryDirectory directory_;
  std::string model_;
  std::string text_;
};

}  // namespace coppice::testing
