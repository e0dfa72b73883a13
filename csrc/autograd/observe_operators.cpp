// Tells a listener when an operator of this library begins and ends, whoever calls it: Python, or autograd's backward
// in a thread of its own. Not registered, which is the default, it costs nothing.
#include <ATen/record_function.h>

#include <cstring>
#include <memory>

namespace {

using Enter = void (*)(const char*);
using Leave = void (*)();

constexpr char NAMESPACE[] = "fashionbert_fast::";
Enter on_enter = nullptr;
Leave on_leave = nullptr;
at::CallbackHandle handle = at::INVALID_CALLBACK_HANDLE;
thread_local int depth = 0;  // an operator with autograd calls itself again below it: one range, not two

struct Ours : at::ObserverContext {};

std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction& function) {
  if (std::strncmp(function.name(), NAMESPACE, sizeof(NAMESPACE) - 1) != 0) return nullptr;
  if (depth++ == 0) on_enter(function.name());
  return std::make_unique<Ours>();
}

void end(const at::RecordFunction&, at::ObserverContext* context) {
  if (context != nullptr && --depth == 0) on_leave();
}

}  // namespace

// Both null: nobody listens any more. One listener at a time, set while no operator runs.
extern "C" __attribute__((visibility("default"))) void fashionbert_observe_operators(Enter enter, Leave leave) {
  if (handle != at::INVALID_CALLBACK_HANDLE) at::removeCallback(handle);
  handle = at::INVALID_CALLBACK_HANDLE;
  on_enter = enter;
  on_leave = leave;
  if (enter == nullptr) return;
  handle = at::addGlobalCallback(at::RecordFunctionCallback(begin, end).scopes({at::RecordScope::FUNCTION}));
}
