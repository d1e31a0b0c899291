/* Appended to musl's features.h: what libc++ takes from bionic's headers. */
#ifndef P3M_GATE_SHIM
#define P3M_GATE_SHIM
#define __BIONIC__ 1
#define _CTYPE_U 0x01
#define _CTYPE_L 0x02
#define _CTYPE_D 0x04
#define _CTYPE_S 0x08
#define _CTYPE_P 0x10
#define _CTYPE_C 0x20
#define _CTYPE_X 0x40
#define _CTYPE_B 0x80
#define _CTYPE_R (_CTYPE_P | _CTYPE_U | _CTYPE_L | _CTYPE_D | _CTYPE_B)
#define _CTYPE_A (_CTYPE_L | _CTYPE_U)
#define _CTYPE_N _CTYPE_D
#endif
