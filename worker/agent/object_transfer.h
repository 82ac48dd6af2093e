// Carries objects between an agent's own store and the scheduler's, over the data port.
//
// Both directions are safe to repeat and to cut at any point: an object appears whole or not at
// all, after its digests were compared; what is there already is not sent again.
#pragma once

#include <stop_token>
#include <string>

#include "core/result.h"
#include "scheduler/protocol/data_port.h"
#include "storage/object_store.h"

namespace saesweep::agent {

// To the scheduler. Durable there when it returns.
// Errors: kNotFound if it is not in `from`; kResourceExhausted if the disk over there is full;
// kCorrupted, kUnavailable: again later.
Result<void> push_object(protocol::DataClient& client, const storage::ObjectStore& from,
                         const std::string& object, const std::stop_token& stop);
// From the scheduler. Durable here when it returns.
// Errors: kNotFound if it is not over there; kResourceExhausted if our disk is full; as above.
Result<void> pull_object(protocol::DataClient& client, storage::ObjectStore& to,
                         const std::string& object, const std::stop_token& stop);

}  // namespace saesweep::agent
