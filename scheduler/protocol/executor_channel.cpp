#include "scheduler/protocol/executor_channel.h"
