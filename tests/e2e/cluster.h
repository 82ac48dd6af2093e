// A scheduler, workers and clients as processes of their own: the words of the tests of serve.
#pragma once

#include <map>
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

  // `saesweep submit` of sweep.yaml, or of another file, to the scheduler of `place`.
  std::vector<std::string> submit_words(const std::string& place,
                                        const std::vector<std::string>& more = {},
                                        const std::string& sweep = "sweep.yaml") const;
  Finished submit(const std::string& place, const std::vector<std::string>& more = {},
                  const std::string& sweep = "sweep.yaml") const;
  // To its end, with results in the place's --out.
  Finished watch(const std::string& place) const;
  // What `saesweep run` makes of sweep.yaml.
  std::map<std::string, std::string> calm() const;
  // The results of `place`.
  void expect_the_same(const std::string& place,
                       const std::map<std::string, std::string>& expected) const;

  std::string address;  // of the scheduler, for workers

 private:
  std::string listen_;
};

}  // namespace saesweep::test
