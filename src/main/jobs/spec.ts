/** What a job does to each of its devices, as `jobs.spec` keeps it. */
import type { Check, FirmwareTargetName } from '../../jobs/firmware-image.ts'
import type { Params } from '../../jobs/parameter-proof.ts'

/** BKV fetches its firmware by FTP; bkv.md 5, 0007. */
export const FTP_TARGETS = ['bkv_gateway', 'bkv_socket'] as const

export type JobSpec =
  | {
      readonly kind: 'parameters'
      readonly set: { readonly name: string; readonly params: Params }
      /** Read back and compare. */
      readonly verify: boolean
    }
  | {
      readonly kind: 'firmware'
      readonly target: FirmwareTargetName | (typeof FTP_TARGETS)[number]
      /** A check chunk behind the last. */
      readonly check?: Check | undefined
      readonly ftp?: { readonly ip: string; readonly port: number; readonly file_name: string } | undefined
    }
