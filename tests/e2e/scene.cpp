#include "tests/e2e/scene.h"

#include <fstream>
#include <iterator>

namespace saesweep::test {

namespace fs = std::filesystem;

Scene::Scene() {
  write("shape/config.json", R"({
 "model_type": "gpt2", "activation_function": "gelu", "n_layer": 2, "n_embd": 32, "n_head": 2,
 "n_inner": 64, "n_ctx": 11, "n_positions": 11, "vocab_size": 13, "layer_norm_epsilon": 1e-05,
 "tie_word_embeddings": false
})");
}

void Scene::write(const std::string& name, const std::string& text) const {
  const fs::path file = path() / name;
  fs::create_directories(file.parent_path());
  std::ofstream(file, std::ios::binary) << text;
}

std::string Scene::read(const fs::path& file) const {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::vector<std::string> Scene::words(const std::vector<std::string>& words) const {
  std::vector<std::string> all = {SAESWEEP_PROGRAM};
  all.insert(all.end(), words.begin(), words.end());
  return all;
}

Finished Scene::saesweep(const std::vector<std::string>& some) const {
  return Program(words(some), path()).wait();
}

std::vector<std::string> Scene::run_words(const std::string& sweep, const std::string& place,
                                          const std::vector<std::string>& more) const {
  std::vector<std::string> all = {"run",     (path() / sweep).string(),
                                  "--state", state(place).string(),
                                  "--out",   out(place).string()};
  all.insert(all.end(), more.begin(), more.end());
  return words(all);
}

Finished Scene::run(const std::string& sweep, const std::string& place,
                    const std::vector<std::string>& more) const {
  return Program(run_words(sweep, place, more), path()).wait();
}

std::map<std::string, std::string> Scene::results(const std::string& place) const {
  std::map<std::string, std::string> found;
  std::error_code ignored;
  for (const auto& entry : fs::recursive_directory_iterator(out(place), ignored)) {
    const std::string name = entry.path().filename().string();
    if (name == "sae.safetensors" || name == "scores.json" || name == "config.json" ||
        name == "curve.csv" || name == "leaderboard.json")
      found[fs::relative(entry.path(), out(place)).string()] = read(entry.path());
  }
  return found;
}

Json Scene::leaderboard(const std::string& place) const {
  return parse_json(read(out(place) / "leaderboard.json")).value_or(Json());
}

std::string tiny_sweep(const std::string& tokens, const std::string& checkpoint_every) {
  return "name: tiny\n"
         "model: {path: shape, random_weights: true, seed: 1}\n"
         "data: {source: othello, board: 4, play: uniform, games: 6k, seed: 0}\n"
         "activations:\n"
         "  hooks: [blocks.1.hook_resid_post]\n"
         "  tokens: 40k\n"
         "  normalize: unit_mean_square\n"
         "  holdout: 10%\n"
         "  cache: 64MiB\n"
         "train:\n"
         "  tokens: " +
         tokens +
         "\n"
         "  batch: 256\n"
         "  warmup_steps: 5%\n"
         "  sparsity_warmup_steps: 5%\n"
         "  checkpoint_every: " +
         checkpoint_every +
         "\n"
         "trials:\n"
         "  - {arch: topk, d_sae: 64, k: [4, 8], threshold_start_step: 20%}\n"
         "  - {arch: batchtopk, d_sae: 64, k: 4, threshold_start_step: 20%}\n"
         "  - {arch: standard, d_sae: 64, l1: 0.05}\n"
         "  - {arch: p_anneal, d_sae: 64, l1: 0.02, anneal_start: 20%}\n"
         "evaluate:\n"
         "  - core: {tokens: 2k}\n"
         "  - board: {games: 200}\n"
         "baselines: [identity, pca, random_sae, neurons, linear_probe, always_on, placement]\n"
         "resources: {memory: 1GiB, slots: 1}\n";
}

}  // namespace saesweep::test
