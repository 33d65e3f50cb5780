#include "cpu/instruction_set.h"

namespace comet {

InstructionSet best_instruction_set() {
#ifdef COMET_X86
  static const InstructionSet best = [] {
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (avx2 && avx512) return InstructionSet::avx512;
    return avx2 ? InstructionSet::avx2 : InstructionSet::plain;
  }();
  return best;
#else
  return InstructionSet::plain;
#endif
}

const char* name(InstructionSet set) {
  switch (set) {
    case InstructionSet::avx512: return "avx512";
    case InstructionSet::avx2: return "avx2";
    default: return "plain";
  }
}

}  // namespace comet
