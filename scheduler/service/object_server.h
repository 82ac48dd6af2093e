// What the scheduler's data port answers: the objects of its store, and files that sweeps name.
#pragma once

#include "scheduler/protocol/data.pb.h"
#include "scheduler/service/sweep_files.h"
#include "storage/object_store.h"

namespace saesweep::scheduler {

// Every request may come twice. The reply's id is left to who sends it. Without `files` no sweep
// names any.
protocol::DataReply answer_data_request(storage::ObjectStore& store,
                                        const protocol::DataRequest& request,
                                        SweepFiles* files = nullptr);

}  // namespace saesweep::scheduler
