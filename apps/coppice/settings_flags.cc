// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "settings_flags.h"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <variant>

#include "coppice/attention.h"
#include "files.h"

namespace coppice::app {
namespace {

constexpr std::size_t kMostConfigBytes = 1 << 20;
constexpr const char* kGroup = "Method settings";

struct Field {
  const char* key;
  int AttentionSettings::*number;
  const char* unit;
  const char* help;
};

constexpr Field kNumbers[] = {
    {"budget", &AttentionSettings::budget, "TOKENS", "keys the search keeps for a query block"},
    {"block_k", &AttentionSettings::block_k, "TOKENS", "keys in a block, kept or left together"},
    {"block_q", &AttentionSettings::block_q, "TOKENS", "query tokens that share a selection"},
    {"query_stride", &AttentionSettings::query_stride, "N",
     "every how many-th token of a query block scores"},
    {"breadth", &AttentionSettings::breadth, "N", "branches followed for each block that is kept"},
    {"probe", &AttentionSettings::probe, "TOKENS", "keys scored of a branch's block; 0: all"},
    {"sink", &AttentionSettings::sink, "TOKENS", "first tokens, always read"},
    {"window", &AttentionSettings::window, "TOKENS", "newest tokens, always read"},
    {"dense_layers", &AttentionSettings::dense_layers, "N", "first layers, left unpruned"},
    {"refresh", &AttentionSettings::refresh, "STEPS", "decoding steps that reuse a selection"},
};

std::string FlagName(std::string_view key) {
  std::string flag = "--" + std::string(key);
  std::replace(flag.begin(), flag.end(), '_', '-');
  return flag;
}

Status ParseBool(const std::string& key, const std::string& text, bool& value) {
  if (text != "true" && text != "false") {
    return Status::InvalidArgument(key + " is '" + text + "'; it must be true or false");
  }
  value = text == "true";
  return Status::Ok();
}

// One setting by its key. Ranges are left to Validate().
Status Apply(AttentionChoice& choice, const std::string& key, const std::string& text) {
  AttentionSettings& settings = choice.settings;
  for (const Field& field : kNumbers) {
    if (key != field.key) continue;
    int value = 0;
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, value);
    if (error != std::errc() || stop != end) {
      return Status::InvalidArgument(key + " is '" + text + "'; it must be a whole number");
    }
    settings.*field.number = value;
    return Status::Ok();
  }
  if (key == "share_group") return ParseBool(key, text, settings.share_group);
  if (key == "balance") return ParseBool(key, text, settings.balance);
  if (key == "fast") return ParseBool(key, text, settings.fast);
  if (key == "exact") {
    Status status = ParseBool(key, text, settings.fast);
    settings.fast = !settings.fast;
    return status;
  }
  if (key == "representative") {
    if (text != "first" && text != "center") {
      return Status::InvalidArgument("representative is '" + text +
                                     "'; it must be first or center");
    }
    settings.representative = text == "first" ? Representative::kFirst : Representative::kCenter;
    return Status::Ok();
  }
  if (key == "method") {
    settings.method = text;
    return Status::Ok();
  }
  if (key == "isa") {
    choice.isa = text;
    return Status::Ok();
  }
  std::string known = "method, isa, representative, balance, share_group, fast";
  for (const Field& field : kNumbers) known += std::string(", ") + field.key;
  return Status::InvalidArgument("unknown setting '" + key + "'; known: " + known);
}

Status ApplyConfig(AttentionChoice& choice, const std::string& path) {
  const Result<std::string> text = ReadFile(path, kMostConfigBytes);
  if (!text.ok()) return text.status();
  const auto config = nlohmann::json::parse(text.value(), nullptr, /*allow_exceptions=*/false);
  if (!config.is_object()) {
    return Status::InvalidArgument("config file '" + path +
                                   "' holds no JSON object; write {\"budget\": 512, ...}");
  }
  for (const auto& [key, value] : config.items()) {
    const std::string written = value.is_string() ? value.get<std::string>() : value.dump();
    if (const Status status = Apply(choice, key, written); !status.ok()) {
      return Status::InvalidArgument("config file '" + path + "': " + status.message());
    }
  }
  return Status::Ok();
}

Status CheckChoice(const AttentionChoice& choice, bool allow_off) {
  const std::string& method = choice.settings.method;
  const std::vector<std::string> selectors = SelectorNames();
  if (method != "dense" && !choice.off &&
      std::find(selectors.begin(), selectors.end(), method) == selectors.end()) {
    return Status::InvalidArgument("unknown method '" + method +
                                   "'; known: " + KnownMethods(allow_off));
  }
  const std::vector<std::string> isas = AvailableIsas();
  if (!choice.isa.empty() && std::find(isas.begin(), isas.end(), choice.isa) == isas.end()) {
    std::string names;
    for (const std::string& name : isas) names += (names.empty() ? "" : ", ") + name;
    return Status::InvalidArgument("isa '" + choice.isa +
                                   "' does not run here; available: " + names);
  }
  AttentionSettings settings = choice.settings;
  if (choice.off) settings.method = "dense";
  const Status status = Validate(settings);
  return status.ok() ? status : Status::InvalidArgument(status.message());
}

}  // namespace

void SettingsFlags::AddTo(CLI::App& command, bool allow_off, const AttentionSettings& defaults) {
  allow_off_ = allow_off;
  defaults_ = defaults;
  const auto note = [this](std::string key) {
    return [this, key](const std::string& value) { given_.emplace_back(key, value); };
  };
  const auto note_flag = [this](std::string key, const char* value) {
    return [this, key, value] { given_.emplace_back(key, value); };
  };
  for (const Field& field : kNumbers) {
    command.add_option_function<std::string>(FlagName(field.key), note(field.key), field.help)
        ->type_name(field.unit)
        ->default_str(std::to_string(defaults.*field.number))
        ->group(kGroup);
  }
  command
      .add_option_function<std::string>("--representative", note("representative"),
                                        "which block of a branch stands for it")
      ->type_name("first|center")
      ->default_str(defaults.representative == Representative::kFirst ? "first" : "center")
      ->group(kGroup);
  const auto flag = [&](const char* name, const char* key, const char* value, bool is_default,
                        std::string help) {
    if (is_default) help += " (default)";
    command.add_flag_callback(name, note_flag(key, value), help)->group(kGroup);
  };
  flag("--balance", "balance", "true", defaults.balance,
       "query rows compare keys with what they see in sink and window");
  flag("--no-balance", "balance", "false", !defaults.balance,
       "products of all query rows are compared as they are");
  flag("--share-group", "share_group", "true", defaults.share_group,
       "the query heads of a KV head share a selection");
  flag("--no-share-group", "share_group", "false", !defaults.share_group,
       "every query head selects for itself");
  flag("--exact", "fast", "false", !defaults.fast, "f32 arithmetic");
  flag("--fast", "fast", "true", defaults.fast, "allow less than f32 where it is faster");
  command.add_option_function<std::string>("--isa", note("isa"), "kernels to use")
      ->type_name("NAME")
      ->default_str("the best")
      ->group(kGroup);
  command.add_option("--config", config_, "JSON file with these settings; flags win over it")
      ->type_name("FILE")
      ->group(kGroup);
}

Result<AttentionChoice> SettingsFlags::Resolve(std::string_view text) const {
  AttentionChoice choice;
  choice.settings = defaults_;
  if (!config_.empty()) {
    if (Status status = ApplyConfig(choice, config_); !status.ok()) return status;
  }
  for (const auto& [key, value] : given_) {
    if (Status status = Apply(choice, key, value); !status.ok()) return status;
  }
  for (bool first = true; !text.empty(); first = false) {
    const std::size_t colon = std::min(text.find(':'), text.size());
    const std::string item(text.substr(0, colon));
    text.remove_prefix(std::min(colon + 1, text.size()));
    if (first) {
      choice.settings.method = item;
      continue;
    }
    const std::size_t equals = item.find('=');
    if (equals == std::string::npos) {
      return Status::InvalidArgument(
          "'" + item + "' is no setting; write METHOD:key=value, as in hip:budget=256");
    }
    Status status = Apply(choice, item.substr(0, equals), item.substr(equals + 1));
    if (!status.ok()) return status;
  }
  choice.off = allow_off_ && choice.settings.method == "off";
  if (Status status = CheckChoice(choice, allow_off_); !status.ok()) return status;
  return choice;
}

std::string KnownMethods(bool allow_off) {
  std::string names = allow_off ? "off, dense" : "dense";
  for (const std::string& name : SelectorNames()) names += ", " + name;
  return names;
}

nlohmann::json ToJson(const AttentionChoice& choice) {
  if (choice.off) return {{"method", "off"}};
  const AttentionSettings& settings = choice.settings;
  nlohmann::json json = {{"method", settings.method}, {"fast", settings.fast}};
  json["isa"] = choice.isa.empty() ? AvailableIsas().back() : choice.isa;
  if (settings.method == "dense") return json;
  for (const Field& field : kNumbers) json[field.key] = settings.*field.number;
  json["representative"] = settings.representative == Representative::kFirst ? "first" : "center";
  json["balance"] = settings.balance;
  json["share_group"] = settings.share_group;
  return json;
}

}  // namespace coppice::app
