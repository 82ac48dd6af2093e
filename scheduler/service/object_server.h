// What the scheduler's data port answers: the objects of its store.
#pragma once

#include "scheduler/protocol/data.pb.h"
#include "storage/object_store.h"

namespace saesweep::scheduler {

// Every request may come twice. The reply's id is left to who sends it.
protocol::DataReply answer_data_request(storage::ObjectStore& store,
                                        const protocol::DataRequest& request);

}  // namespace saesweep::scheduler
