// A scheduler, workers and clients as processes of their own: the words of the tests of serve.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "tests/e2e/scene.h"

namespace saesweep::test {

class ServedScene : public Scene {
 public:
  ServedScene();
  // `saesweep serve` on the state directory of `place`; returns once it answers. The address is
  // kept over restarts.
  std::unique_ptr<Program> serve(const std::string& place,
                                 const std::vector<std::string>& more = {"--insecure-loopback"});
  // A worker with a state directory of its own.
  std::unique_ptr<Program> worker(const std::string& name,
                                  const std::vector<std::string>& more = {});
  // A verb that asks the scheduler of `place`.
  Finished ask(const std::string& place, std::vector<std::string> words) const;
  // Its answer as JSON, which keeps the schema.
  Json asked(const std::string& place, std::vector<std::string> words,
             const std::string& schema) const;

  std::string address;  // of the scheduler, for workers

 private:
  std::string listen_;
};

}  // namespace saesweep::test
