/* What the NDK's crtbegin_so.o has: this library's own handle, and its destructors when it is unloaded. */
__attribute__((visibility("hidden"))) void* __dso_handle = &__dso_handle;
extern void __cxa_finalize(void*);
__attribute__((destructor, used)) static void finalize(void) { __cxa_finalize(&__dso_handle); }
