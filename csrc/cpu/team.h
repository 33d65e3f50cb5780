// The team of threads that torch computes with, where that is libgomp's.
#pragma once

#include <cstdint>

namespace comet {

// Allows teams in the process of this number. In a child that was forked from it they would wait for threads that the
// child has not got.
void allow_team(int64_t process);

// Whether there is one.
bool has_team();

// Calls work(data) once on every thread of the team, this one included; false, and no call, where there is none.
bool run_in_team(void (*work)(void* data), void* data);

}  // namespace comet
