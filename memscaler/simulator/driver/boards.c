/* The catalogue, as data. Clock tables follow NVIDIA's published ranges; watts are other people's measurements, collected in
 * facts/nvml.md 0 and 1.4. A figure without a published source is marked "assumed".
 * A step: memory MHz, P-state, highest and lowest graphics MHz at that memory clock, number of graphics clocks (evenly spaced). */
#include "boards.h"

#include <string.h>

enum { NOT_SUPPORTED = -104, INVALID_HANDLE = -8 };
enum { PASCAL = 4, VOLTA = 5, TURING = 6, AMPERE = 7, ADA = 8, HOPPER = 9 };
enum { QUADRO = 1, TESLA = 2, GEFORCE = 5, VIRTUAL = 9, NVIDIA = 14 };
enum { DEFERRED = 1, RUNTIME = 2 };

#define GIB(n) ((uint64_t)(n) << 30)
#define DATACENTRE (CAN_LIST_CLOCKS | CAN_READ_POWER | CAN_APPLICATION_CLOCKS)
#define SINCE_VOLTA (CAN_LOCK_GRAPHICS | CAN_COUNT_ENERGY)
#define SINCE_AMPERE (SINCE_VOLTA | CAN_LOCK_MEMORY | AVERAGES_POWER)

const sim_spec board_catalogue[] = {
    {   /* 18 W at 405 MHz against 80 W at 7251 MHz with a live context: neggles/memscaler README */
        .key = "a40", .name = "NVIDIA A40", .memory_bytes = GIB(48), .architecture = AMPERE, .brand = NVIDIA,
        .cc_major = 8, .cc_minor = 6, .pci_device_id = 0x223510de, .pci_subsystem_id = 0x145a10de,
        .step_count = 2, .steps = {{7251, 0, 1740, 210, 103}, {405, 8, 420, 210, 15}},
        .context_memory_mhz = 7251, .context_graphics_mhz = 1740, .idle_graphics_mhz = 210,
        .bare_mw = 18000, .context_mw = 80000, .parked_mw = 18000, .active_mw = 290000, .memory_share_permille = 700,
        .limit_min_mw = 100000, .limit_default_mw = 300000, .limit_max_mw = 300000,
        .flags = DATACENTRE | SINCE_AMPERE, .mclk_switch_type = RUNTIME,
    },
    {   /* 9-11 W bare, 45-50 W with a context, about 10 W at P8: llama.cpp#4598, #3717 */
        .key = "p40", .name = "Tesla P40", .memory_bytes = GIB(24), .architecture = PASCAL, .brand = TESLA,
        .cc_major = 6, .cc_minor = 1, .pci_device_id = 0x1b3810de, .pci_subsystem_id = 0x11d910de,
        .step_count = 2, .steps = {{3615, 0, 1531, 544, 79}, {405, 8, 544, 544, 1}},
        .context_memory_mhz = 3615, .context_graphics_mhz = 1303, .idle_graphics_mhz = 544,
        .bare_mw = 10000, .context_mw = 50000, .parked_mw = 10000, .active_mw = 240000, .memory_share_permille = 700,
        .limit_min_mw = 125000, .limit_default_mw = 250000, .limit_max_mw = 250000, .flags = DATACENTRE,
    },
    {   /* 35.6 W bare, 102.1 W with a context: arXiv:2605.23918; about 35 W at 405 MHz: pdblend */
        .key = "l40s", .name = "NVIDIA L40S", .memory_bytes = GIB(48), .architecture = ADA, .brand = NVIDIA,
        .cc_major = 8, .cc_minor = 9, .pci_device_id = 0x26b910de, .pci_subsystem_id = 0x185110de,
        .step_count = 2, .steps = {{9001, 0, 2520, 210, 155}, {405, 8, 420, 210, 15}},
        .context_memory_mhz = 9001, .context_graphics_mhz = 2520, .idle_graphics_mhz = 210,
        .bare_mw = 35600, .context_mw = 102100, .parked_mw = 35000, .active_mw = 300000, .memory_share_permille = 650,
        .limit_min_mw = 100000, .limit_default_mw = 350000, .limit_max_mw = 350000,
        .flags = DATACENTRE | SINCE_AMPERE, .mclk_switch_type = RUNTIME,
    },
    {   /* P8 at 16-31 W with a model loaded: club-3090#747, A1111#9810; P2 idle 110 W assumed */
        .key = "rtx3090", .name = "NVIDIA GeForce RTX 3090", .memory_bytes = GIB(24), .architecture = AMPERE, .brand = GEFORCE,
        .cc_major = 8, .cc_minor = 6, .pci_device_id = 0x220410de, .pci_subsystem_id = 0x38801462,
        .step_count = 5, .steps = {{9751, 0, 2100, 210, 127}, {9501, 2, 2100, 210, 127}, {5001, 3, 2100, 210, 127},
                                   {810, 5, 2100, 210, 127}, {405, 8, 420, 210, 15}},
        .context_memory_mhz = 9501, .context_graphics_mhz = 1695, .idle_graphics_mhz = 210,
        .bare_mw = 13000, .context_mw = 110000, .parked_mw = 24000, .active_mw = 300000, .memory_share_permille = 600,
        .limit_min_mw = 100000, .limit_default_mw = 350000, .limit_max_mw = 366000,
        .flags = CAN_LIST_CLOCKS | CAN_READ_POWER | SINCE_AMPERE | DROPS_WHEN_IDLE | HAS_FAN, .mclk_switch_type = RUNTIME,
    },
    {   /* One memory clock. 53.7 W bare, 80 W with a context: arXiv:2605.23918 (80 GB card); parked 55 W assumed */
        .key = "a100", .name = "NVIDIA A100-PCIE-40GB", .memory_bytes = GIB(40), .architecture = AMPERE, .brand = NVIDIA,
        .cc_major = 8, .cc_minor = 0, .pci_device_id = 0x20f110de, .pci_subsystem_id = 0x145f10de,
        .step_count = 1, .steps = {{1215, 0, 1410, 210, 81}},
        .context_memory_mhz = 1215, .context_graphics_mhz = 1410, .idle_graphics_mhz = 210,
        .bare_mw = 53700, .context_mw = 80000, .parked_mw = 55000, .active_mw = 245000,
        .limit_min_mw = 150000, .limit_default_mw = 250000, .limit_max_mw = 250000,
        .flags = DATACENTRE | SINCE_VOLTA, .nvapi_refusal = NOT_SUPPORTED,
    },
    {
        .key = "a100-mig", .name = "NVIDIA A100-PCIE-40GB", .memory_bytes = GIB(40), .architecture = AMPERE, .brand = NVIDIA,
        .cc_major = 8, .cc_minor = 0, .pci_device_id = 0x20f110de, .pci_subsystem_id = 0x145f10de,
        .step_count = 1, .steps = {{1215, 0, 1410, 210, 81}},
        .context_memory_mhz = 1215, .context_graphics_mhz = 1410, .idle_graphics_mhz = 210,
        .bare_mw = 53700, .context_mw = 80000, .parked_mw = 55000, .active_mw = 245000,
        .limit_min_mw = 150000, .limit_default_mw = 250000, .limit_max_mw = 250000,
        .flags = DATACENTRE | SINCE_VOLTA, .nvapi_refusal = NOT_SUPPORTED, .mig_instances = 2,
    },
    {   /* Two memory clocks listed, but a switch needs a driver reload. 71.8 / 121.7 W: arXiv:2605.23918; parked 75 W assumed.
         * SetForcePstate answers INVALID_HANDLE: nvidia-pstated#5 */
        .key = "h100", .name = "NVIDIA H100 80GB HBM3", .memory_bytes = GIB(80), .architecture = HOPPER, .brand = NVIDIA,
        .cc_major = 9, .cc_minor = 0, .pci_device_id = 0x233010de, .pci_subsystem_id = 0x16c110de,
        .step_count = 2, .steps = {{2619, 0, 1980, 345, 110}, {1593, 0, 1980, 345, 110}},
        .context_memory_mhz = 2619, .context_graphics_mhz = 1980, .idle_graphics_mhz = 345,
        .bare_mw = 71800, .context_mw = 121700, .parked_mw = 75000, .active_mw = 300000,
        .limit_min_mw = 200000, .limit_default_mw = 700000, .limit_max_mw = 700000,
        .flags = DATACENTRE | SINCE_VOLTA | AVERAGES_POWER | ANSWERS_MCLK, .mclk_switch_type = DEFERRED,
        .nvapi_refusal = INVALID_HANDLE,
    },
    {   /* All watts assumed; no memory lock before Ampere (nvml.h) */
        .key = "t4", .name = "Tesla T4", .memory_bytes = GIB(16), .architecture = TURING, .brand = NVIDIA,
        .cc_major = 7, .cc_minor = 5, .pci_device_id = 0x1eb810de, .pci_subsystem_id = 0x12a210de,
        .step_count = 2, .steps = {{5001, 0, 1590, 300, 87}, {405, 8, 645, 300, 24}},
        .context_memory_mhz = 5001, .context_graphics_mhz = 1590, .idle_graphics_mhz = 300,
        .bare_mw = 10000, .context_mw = 28000, .parked_mw = 11000, .active_mw = 69000, .memory_share_permille = 500,
        .limit_min_mw = 60000, .limit_default_mw = 70000, .limit_max_mw = 70000,
        .flags = DATACENTRE | SINCE_VOLTA, .nvapi_refusal = NOT_SUPPORTED,
    },
    {   /* 27-33 W bare, 40-45 W with a context, 33 W at the lowest clocks: ollama#8591, pstated#6 */
        .key = "v100", .name = "Tesla V100-PCIE-32GB", .memory_bytes = GIB(32), .architecture = VOLTA, .brand = TESLA,
        .cc_major = 7, .cc_minor = 0, .pci_device_id = 0x1db610de, .pci_subsystem_id = 0x124a10de,
        .step_count = 1, .steps = {{877, 0, 1380, 135, 167}},
        .context_memory_mhz = 877, .context_graphics_mhz = 1230, .idle_graphics_mhz = 135,
        .bare_mw = 27000, .context_mw = 45000, .parked_mw = 33000, .active_mw = 245000,
        .limit_min_mw = 100000, .limit_default_mw = 250000, .limit_max_mw = 250000,
        .flags = DATACENTRE | SINCE_VOLTA, .nvapi_refusal = NOT_SUPPORTED,
    },
    {   /* A guest of the hypervisor: it sees clocks, and may change nothing */
        .key = "vgpu", .name = "NVIDIA A40-8Q", .memory_bytes = GIB(8), .architecture = AMPERE, .brand = VIRTUAL,
        .cc_major = 8, .cc_minor = 6, .pci_device_id = 0x223510de, .pci_subsystem_id = 0x14d510de,
        .step_count = 1, .steps = {{7251, 0, 1740, 210, 103}},
        .context_memory_mhz = 7251, .context_graphics_mhz = 1740, .idle_graphics_mhz = 210,
        .bare_mw = 80000, .context_mw = 80000, .parked_mw = 80000, .active_mw = 290000,
        .limit_default_mw = 300000, .limit_max_mw = 300000, .virtualization = 2, .nvapi_refusal = NOT_SUPPORTED,
    },
};

const unsigned board_catalogue_size = sizeof board_catalogue / sizeof board_catalogue[0];

const sim_spec *board_find(const char *key) {
    for (unsigned i = 0; i < board_catalogue_size; i++)
        if (strcmp(board_catalogue[i].key, key) == 0) return &board_catalogue[i];
    return NULL;
}
