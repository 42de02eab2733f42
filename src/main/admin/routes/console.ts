/**
 * The console: a page of static files without a build step. Read once when the routes are made; nothing of it needs a
 * key, what it shows comes from the API with the key of whoever looks.
 */
import { createHash } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { extname } from 'node:path'
import * as z from 'zod'
import { HttpError } from '../../../errors/errors.ts'
import { defineRoute, type RawBody, type Route } from '../route.ts'

const require = createRequire(import.meta.url)

const HTML = 'text/html; charset=utf-8'
const SCRIPT = 'text/javascript; charset=utf-8'
const STYLE = 'text/css; charset=utf-8'

/** Every script and style of the folder is served: a new page needs no line here. */
const FOLDER = new URL('../console/', import.meta.url)
const TYPES: Readonly<Record<string, string>> = { '.js': SCRIPT, '.css': STYLE }

function files(): Map<string, StaticFile> {
  const found = new Map<string, StaticFile>()
  for (const name of readdirSync(FOLDER)) {
    const type = TYPES[extname(name)]
    if (type !== undefined) found.set(name, read(type, new URL(name, FOLDER)))
  }
  return found
    .set('uplot.js', read(SCRIPT, require.resolve('uplot/dist/uPlot.esm.js')))
    .set('uplot.css', read(STYLE, require.resolve('uplot/dist/uPlot.min.css')))
}

/** No script and no style but our own files, no frame around us, nowhere to send a form. */
const POLICY = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "connect-src 'self'",
  "img-src 'self' data:",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
].join('; ')

interface StaticFile {
  readonly contentType: string
  readonly body: string
  readonly etag: string
}

function read(contentType: string, place: URL | string): StaticFile {
  const body = readFileSync(place, 'utf8')
  return { contentType, body, etag: `"${createHash('sha256').update(body).digest('base64url').slice(0, 27)}"` }
}

export function consoleRoutes(): readonly Route[] {
  const page = read(HTML, new URL('index.html', FOLDER))
  const served = files()

  const answer = (file: StaticFile, ifNoneMatch: string | undefined, setStatus: (status: number) => void): RawBody => {
    const isKnown = ifNoneMatch?.split(/\s*,\s*/).includes(file.etag) === true
    if (isKnown) setStatus(304)
    return {
      contentType: file.contentType,
      body: isKnown ? '' : file.body,
      headers: [
        ['ETag', file.etag],
        // asked for again each time, answered with 304
        ['Cache-Control', 'no-cache'],
        ['Content-Security-Policy', POLICY],
        ['X-Content-Type-Options', 'nosniff'],
        ['Referrer-Policy', 'no-referrer'],
      ],
    }
  }
  return [
    defineRoute({
      method: 'GET',
      path: '/',
      role: 'public',
      summary: 'The console, for people',
      contentType: HTML,
      handle: ({ ifNoneMatch, setStatus }) => answer(page, ifNoneMatch, setStatus),
    }),
    defineRoute({
      method: 'GET',
      path: '/console/{file}',
      role: 'public',
      summary: 'Scripts and styles of the console',
      params: z.strictObject({ file: z.string().max(100) }),
      contentType: SCRIPT,
      errors: ['NOT_FOUND'],
      handle: ({ params, ifNoneMatch, setStatus }) => {
        const file = served.get(params.file)
        if (file === undefined) throw new HttpError('NOT_FOUND', `no file ${params.file}`)
        return answer(file, ifNoneMatch, setStatus)
      },
    }),
  ]
}
