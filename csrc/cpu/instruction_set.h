// Which vector instructions this processor has, asked once at run time.
#pragma once

namespace comet {

enum class InstructionSet { plain = 0, avx2 = 1, avx512 = 2 };

// The widest set that both this build and this processor have.
InstructionSet best_instruction_set();

const char* name(InstructionSet set);

}  // namespace comet
