// Workers with caches of their own that need the same stream: real processes, with keys.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <sstream>

#include "tests/e2e/cluster.h"

namespace saesweep::test {
namespace {

std::string get(std::uint16_t port, const std::string& target) {
  const int socket = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string all;
  if (::connect(socket, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) {
    const std::string request =
        "GET " + target + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    char buffer[4096];
    ssize_t got = ::send(socket, request.data(), request.size(), MSG_NOSIGNAL);
    while (got > 0 && (got = ::recv(socket, buffer, sizeof buffer, 0)) > 0)
      all.append(buffer, static_cast<std::size_t>(got));
  }
  ::close(socket);
  return all;
}

// Training alone.
std::string tiny_training(const std::string& tokens) {
  std::string sweep = tiny_sweep(tokens);
  sweep.erase(sweep.find("evaluate:"), sweep.find("resources:") - sweep.find("evaluate:"));
  return sweep;
}

struct SharedChunks : testing::Test {
  ServedScene scene;
  std::unique_ptr<Program> scheduler;

  void serve(std::vector<std::string> more = {}) {
    more.insert(more.end(), {"--metrics-port", "0"});
    scheduler = scene.serve("a", more);
  }
  std::unique_ptr<Program> worker(const std::string& name) {
    return std::make_unique<Program>(
        scene.words({"worker", "--access", (scene.state("a") / "keys" / "worker.access").string(),
                     "--name", name, "--threads", "1", "--memory", "1GiB", "--state",
                     (scene.path() / (name + "-worker")).string()}),
        scene.path());
  }
  void submit_and_wait(const std::string& sweep) {
    const Finished submitted =
        scene.submit("a", {"--watch", "--out", scene.out("a").string()}, sweep);
    ASSERT_EQ(submitted.exit_code, 0) << submitted.err << scheduler->err();
  }
  // A counter on the scheduler's page.
  std::uint64_t counter(const std::string& name) {
    constexpr std::string_view kBefore = "metrics: http://127.0.0.1:";
    const std::string said = scheduler->err();
    const std::size_t at = said.find(kBefore);
    if (at == std::string::npos) return 0;
    const auto port = static_cast<std::uint16_t>(std::atoi(said.c_str() + at + kBefore.size()));
    std::istringstream page(get(port, "/metrics"));
    for (std::string line; std::getline(page, line);)
      if (line.starts_with(name + " "))
        return std::strtoull(line.c_str() + name.size(), nullptr, 10);
    ADD_FAILURE() << "no " << name;
    return 0;
  }
  // Heartbeats bring it: its value once some of them changed nothing.
  std::uint64_t settled(const std::string& name) {
    std::uint64_t value = 0;
    auto since = std::chrono::steady_clock::now();
    eventually([&] {
      const auto now = std::chrono::steady_clock::now();
      const std::uint64_t next = counter(name);
      if (next != value) since = now;
      value = next;
      return now - since >= std::chrono::seconds(3);
    });
    return value;
  }
};

TEST_F(SharedChunks, HooksOfOneModelAreHarvestedInOneForwardPassAndNoByteChanges) {
  std::string sweep = tiny_training("80k");
  const std::string hook = "blocks.1.hook_resid_post";
  sweep.replace(sweep.find(hook), hook.size(),
                "blocks.0.hook_resid_post, blocks.0.mlp.hook_post, " + hook);
  scene.write("hooks.yaml", sweep);
  const Finished apart = scene.run("hooks.yaml", "apart", {"--set", "activations.cache=0"});
  ASSERT_EQ(apart.exit_code, 0) << apart.err;
  const auto expected = scene.results("apart");

  serve();
  const auto one = worker("one");
  submit_and_wait("hooks.yaml");
  ASSERT_TRUE(eventually([&] { return counter("saesweep_harvested_tokens_total") > 0; }));
  const std::uint64_t harvested = settled("saesweep_harvested_tokens_total");
  EXPECT_GE(harvested, 40'000u);
  EXPECT_LT(harvested, 80'000u) << "two passes, and there are three hooks";
  for (const auto& [name, text] : expected)
    if (name.ends_with("sae.safetensors")) {
      EXPECT_EQ(scene.results("a").at(name), text) << name;
    }
}

TEST_F(SharedChunks, WhatOneWorkerHarvestedAnotherFetchesAndNoByteChanges) {
  // Nothing is scored, so that both workers are free when the second sweep comes: the same stream,
  // other trials.
  const std::string first = tiny_training("80k");
  scene.write("first.yaml", first);
  std::string second = first;
  second.replace(second.find("name: tiny"), 10, "name: more");
  second.replace(second.find("k: [4, 8]"), 9, "k: [3, 5, 6, 7]");
  scene.write("second.yaml", second);
  const Finished calm = scene.run("second.yaml", "calm");
  ASSERT_EQ(calm.exit_code, 0) << calm.err;
  const auto expected = scene.results("calm");

  serve();
  const auto one = worker("one");
  submit_and_wait("first.yaml");
  ASSERT_TRUE(eventually([&] { return counter("saesweep_harvested_tokens_total") > 0; }));
  const std::uint64_t harvested = settled("saesweep_harvested_tokens_total");
  EXPECT_EQ(counter("saesweep_chunks_fetched_total"), 0u);

  const auto two = worker("two");
  ASSERT_TRUE(eventually([&] {
    return scene.asked("a", {"workers"}, "workers")["workers"].size() == 2;
  })) << two->err();
  std::filesystem::remove_all(scene.out("a"));
  submit_and_wait("second.yaml");
  EXPECT_TRUE(eventually(
      [&] {
        const std::uint64_t fetched = counter("saesweep_chunks_fetched_total");
        return fetched > 0 && fetched <= counter("saesweep_chunks_served_total");
      },
      std::chrono::seconds(20)))
      << "fetched " << counter("saesweep_chunks_fetched_total") << ", served "
      << counter("saesweep_chunks_served_total") << scheduler->err() << one->err() << two->err();
  EXPECT_GT(counter("saesweep_chunk_fetched_bytes_total"), 0u);
  // The model is tiny: on a busy machine fetching may prove slower than harvesting, and is left.
  EXPECT_LT(settled("saesweep_harvested_tokens_total"), 2 * harvested)
      << "the second worker harvested all that the first has";
  const auto bytes = scene.results("a");
  EXPECT_EQ(bytes.size(), expected.size());
  for (const auto& [name, text] : expected) {
    ASSERT_TRUE(bytes.contains(name)) << name;
    EXPECT_EQ(bytes.at(name), text) << name;
  }
}

}  // namespace
}  // namespace saesweep::test
