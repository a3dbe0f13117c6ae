/* One pretended CUDA device for torch's own bookkeeping: it has a default stream and no context, and nothing runs on it.

Preloaded, these functions stand before those of libc10_cuda, and the last one before the driver's. */
#include <stdint.h>

typedef struct { int8_t device_type, device; int64_t id; } Stream;
static const Stream default_stream = {1, 0, 0};

int8_t _ZN3c104cuda12device_countEv(void) { return 1; }
int8_t _ZN3c104cuda28device_count_ensure_non_zeroEv(void) { return 1; }
int8_t _ZN3c104cuda14current_deviceEv(void) { return 0; }
int8_t _ZN3c104cuda14ExchangeDeviceEa(int8_t device) { return 0; }
int8_t _ZN3c104cuda19MaybeExchangeDeviceEa(int8_t device) { return 0; }
void _ZN3c104cuda14MaybeSetDeviceEa(int8_t device) {}
int _ZN3c104cuda9GetDeviceEPa(int8_t *device) { *device = 0; return 0; }
int _ZN3c104cuda9SetDeviceEab(int8_t device, _Bool force) { return 0; }
int _ZN3c104cuda14GetDeviceCountEPi(int *count) { *count = 1; return 0; }
Stream _ZN3c104cuda20getCurrentCUDAStreamEa(int8_t device) { return default_stream; }
Stream _ZN3c104cuda20getDefaultCUDAStreamEa(int8_t device) { return default_stream; }
void _ZN3c104cuda20setCurrentCUDAStreamENS0_10CUDAStreamE(Stream stream) {}
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = 0; return 0; }
