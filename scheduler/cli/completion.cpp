// saesweep completion SHELL: a script that completes verbs and flags, made from the flags there
// are.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "scheduler/cli/program.h"
#include "scheduler/cli/verbs.h"

namespace saesweep::cli {
namespace {

struct Words {
  std::string name, does;
  std::vector<std::string> flags;  // --long
  std::vector<std::string> subverbs;
};

Words words_of(const CLI::App& app) {
  Words words{app.get_name(), app.get_description(), {}, {}};
  for (const CLI::Option* option : app.get_options())
    for (const std::string& name : option->get_lnames()) words.flags.push_back("--" + name);
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; })) {
    words.subverbs.push_back(sub->get_name());
    for (const std::string& flag : words_of(*sub).flags)
      if (std::ranges::find(words.flags, flag) == words.flags.end()) words.flags.push_back(flag);
  }
  return words;
}

std::string join(const std::vector<std::string>& words) {
  std::string line;
  for (const std::string& word : words) line += (line.empty() ? "" : " ") + word;
  return line;
}

// The words after each verb, as branches of a shell's case.
std::string cases(const std::vector<Words>& verbs, const std::string& names) {
  std::string text;
  for (const Words& verb : verbs)
    text += fmt::format("    {}) list=\"{}{}{}\" ;;\n", verb.name, join(verb.subverbs),
                        verb.subverbs.empty() ? "" : " ", join(verb.flags));
  return text + fmt::format("    \"\") list=\"{}\" ;;\n", names);
}

std::string bash(const std::vector<Words>& verbs, const std::string& names) {
  return R"(# saesweep completion bash > /etc/bash_completion.d/saesweep
_saesweep() {
  local current="${COMP_WORDS[COMP_CWORD]}" verb="" list="" i
  for ((i = 1; i < COMP_CWORD; i++)); do
    if [[ "${COMP_WORDS[i]}" != -* ]]; then verb="${COMP_WORDS[i]}"; break; fi
  done
  case "$verb" in
)" + cases(verbs, names) +
         R"(  esac
  COMPREPLY=($(compgen -W "$list" -- "$current"))
  if [[ -n "$verb" && "$current" != -* ]]; then
    COMPREPLY+=($(compgen -f -- "$current"))
  fi
  return 0
}
complete -o filenames -F _saesweep saesweep
)";
}

std::string zsh(const std::vector<Words>& verbs, const std::string& names) {
  return R"(#compdef saesweep
# saesweep completion zsh > "${fpath[1]}/_saesweep"
_saesweep() {
  local verb="" list="" i
  for ((i = 2; i < CURRENT; i++)); do
    if [[ "${words[i]}" != -* ]]; then verb="${words[i]}"; break; fi
  done
  case "$verb" in
)" + cases(verbs, names) +
         R"(  esac
  compadd -- ${=list}
  if [[ -n "$verb" ]]; then _files; fi
  return 0
}
if [[ "${funcstack[1]}" == _saesweep ]]; then _saesweep "$@"; else compdef _saesweep saesweep; fi
)";
}

// A text between single quotes of fish.
std::string quoted(const std::string& text) {
  std::string safe;
  for (const char c : text) {
    if (c == '\'' || c == '\\') safe += '\\';
    safe += c;
  }
  return "'" + safe + "'";
}

std::string fish(const std::vector<Words>& verbs, const std::string&) {
  std::string text = "# saesweep completion fish > ~/.config/fish/completions/saesweep.fish\n";
  for (const Words& verb : verbs) {
    text += fmt::format("complete -c saesweep -f -n __fish_use_subcommand -a {} -d {}\n", verb.name,
                        quoted(verb.does));
    const std::string after = fmt::format("'__fish_seen_subcommand_from {}'", verb.name);
    for (const std::string& word : verb.subverbs)
      text += fmt::format("complete -c saesweep -n {} -a {}\n", after, word);
    for (const std::string& flag : verb.flags)
      text += fmt::format("complete -c saesweep -n {} -l {}\n", after, flag.substr(2));
  }
  return text;
}

}  // namespace

Action add_completion(CLI::App& program, const GlobalFlags&) {
  CLI::App* verb = program.add_subcommand("completion", "Write a shell's completion script");
  const auto shell = std::make_shared<std::string>();
  verb->add_option("SHELL", *shell, "bash, zsh or fish")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh", "fish"}));
  verb->footer(R"(Examples:
  source <(saesweep completion bash)
  saesweep completion zsh > "${fpath[1]}/_saesweep"
  saesweep completion fish > ~/.config/fish/completions/saesweep.fish
)");
  return [shell, &program] {
    std::vector<Words> verbs;
    std::vector<std::string> names;
    for (const CLI::App* sub : program.get_subcommands([](const CLI::App*) { return true; })) {
      verbs.push_back(words_of(*sub));
      names.push_back(sub->get_name());
    }
    const auto write = *shell == "bash" ? bash : *shell == "zsh" ? zsh : fish;
    fmt::print("{}", write(verbs, join(names)));
    return kExitDone;
  };
}

}  // namespace saesweep::cli
