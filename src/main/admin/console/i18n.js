/** English and Chinese. A word that is missing shows as its key, so that it is seen. */

const EN = {
  console: 'Pilegate console', nav: 'Pages', overview: 'Overview', devices: 'Devices', orders: 'Orders', webhooks: 'Webhooks',
  sign_in: 'Sign in', sign_out: 'Sign out', api_key: 'API key',
  key_hint: 'The secret of a key. The first one lies in DATA_DIR/api-key. It stays in this tab.',
  bad_key: 'This key is not known here.', language: '中文', theme: 'Theme', theme_light: 'Light', theme_dark: 'Dark', theme_auto: 'Auto',
  live: 'Live', connecting: 'Connecting', away: 'Connection lost, trying again',
  online: 'Online', offline: 'Offline', charging_now: 'Charging now', alarms_day: 'Alarms, 24 h', connections: 'Connections',
  settled: 'Settlements', rows_pending: 'Rows waiting', throughput: 'Throughput', frames_per_s: 'Frames per second',
  devices_online: 'Devices online', recent: 'Happening now', alarms: 'Alarms', no_alarms: 'No alarms in the last 24 hours.',
  no_events: 'Nothing has happened yet.', search: 'Search', search_hint: 'Device id, name, site or ICCID', all: 'All', only_online: 'Online',
  only_offline: 'Offline', presence: 'Presence', protocol: 'Protocol', device: 'Device', name: 'Name', site: 'Site', firmware: 'Firmware',
  ports: 'Ports', last_seen: 'Last seen', no_devices: 'No device fits.', previous: 'Previous', next: 'Next', pages: 'Paging',
  port: 'Port', socket: 'Socket', state: 'State', power: 'Power', energy: 'Energy', voltage: 'Voltage', current: 'Current', temperature: 'Temperature',
  order: 'Order', session: 'Session', commands: 'Commands', timeline: 'Timeline', no_ports: 'This device has not reported its ports yet.',
  no_orders: 'No order yet.', no_commands: 'No command yet.', start: 'Start', stop: 'Stop', start_charge: 'Start a charge', stop_charge: 'Stop the charge',
  send_command: 'Send a command', command: 'Command', params: 'Parameters (JSON)', bad_json: 'The parameters are no JSON object.',
  mode: 'Mode', 'mode.full': 'Until full', 'mode.time': 'By time', 'mode.energy': 'By energy', 'mode.budget': 'By budget', 'mode.power': 'By power', duration_min: 'Duration (minutes)', energy_input: 'Energy (Wh)',
  confirm: 'Confirm', cancel: 'Cancel', sent_ok: 'Accepted: {what}', stop_question: 'Stop what charges on port {port} of {device}?',
  command_question: 'The command goes to {device} at once.', start_question: 'Power will be switched on at port {port} of {device}.',
  at: 'Time', what: 'What', details: 'Details', fate: 'Fate', attempts: 'Attempts', settled_at: 'Settled', made: 'Made', reason: 'Reason', created: 'Given', duration: 'Duration', amount: 'Amount',
  started: 'Started', ended: 'Ended', end_reason: 'End reason', origin: 'Origin', max_power: 'Peak power', order_state: 'Order state', estimated: 'Estimated', yes: 'Yes', no: 'No',
  business_no: 'Business no.', clock: 'Clock offset', iccid: 'ICCID', signal: 'Signal', epoch: 'Epoch', address: 'Address', opened: 'Since', model: 'Type',
  url: 'Address', events: 'Events', status: 'Status', deliveries: 'Deliveries', redeliver: 'Deliver again', test: 'Test', no_webhooks: 'No webhook is set up.',
  no_deliveries: 'No delivery yet.', answer: 'Answer', needs_admin: 'This page needs a key with the role admin.', not_found: 'There is no such page.', loading: 'Loading',
  last_status: 'Last status', every: 'All', redeliver_question: 'Deliver {event} once more?', back: 'Back', version: 'Version', figures: 'Figures', filter: 'Filter',
  'state.idle': 'Idle', 'state.plugged': 'Plugged in', 'state.charging': 'Charging', 'state.full': 'Full', 'state.float': 'Float', 'state.fault': 'Fault', 'state.offline': 'Offline', 'state.unknown': 'Unknown',
  'order.pending': 'Pending', 'order.starting': 'Starting', 'order.charging': 'Charging', 'order.stopping': 'Stopping', 'order.settled': 'Settled', 'order.failed': 'Failed', 'order.cancelled': 'Cancelled',
  'fate.queued': 'Queued', 'fate.sent': 'Sent', 'fate.acked': 'Done', 'fate.refused': 'Refused', 'fate.expired': 'Expired', 'fate.dead': 'No answer', 'fate.cancelled': 'Cancelled',
  'event.device.registered': 'Device registered', 'event.device.online': 'Device online', 'event.device.offline': 'Device offline', 'event.device.alarm': 'Alarm',
  'event.port.state_changed': 'Port changed', 'event.charging.started': 'Charging started', 'event.charging.progress': 'Charging', 'event.charging.ended': 'Charging ended',
  'hook.active': 'Active', 'hook.paused': 'Paused', 'hook.stopped': 'Stopped',
  'delivery.pending': 'Pending', 'delivery.delivered': 'Delivered', 'delivery.dead': 'Given up', 'delivery.cancelled': 'Cancelled',
  'event.order.corrected': 'Order corrected', 'event.webhook.test': 'Test',
  'event.order.failed': 'Order failed', 'event.card.swiped': 'Card swiped', 'event.command.finished': 'Command finished',
}

const ZH = {
  console: 'Pilegate 控制台', nav: '页面', overview: '总览', devices: '设备', orders: '订单', webhooks: '回调',
  sign_in: '登录', sign_out: '退出', api_key: 'API 密钥',
  key_hint: '密钥的内容。首个密钥位于 DATA_DIR/api-key,仅保存在当前标签页。',
  bad_key: '密钥无效。', language: 'English', theme: '主题', theme_light: '浅色', theme_dark: '深色', theme_auto: '自动',
  live: '实时', connecting: '连接中', away: '连接已断开,正在重试',
  online: '在线', offline: '离线', charging_now: '正在充电', alarms_day: '24 小时告警', connections: '连接数',
  settled: '结算', rows_pending: '待写入', throughput: '吞吐量', frames_per_s: '每秒帧数',
  devices_online: '在线设备', recent: '实时动态', alarms: '告警', no_alarms: '最近 24 小时没有告警。',
  no_events: '暂无动态。', search: '搜索', search_hint: '设备编号、名称、站点或 ICCID', all: '全部', only_online: '在线',
  only_offline: '离线', presence: '状态', protocol: '协议', device: '设备', name: '名称', site: '站点', firmware: '固件',
  ports: '端口', last_seen: '最近通信', no_devices: '没有符合条件的设备。', previous: '上一页', next: '下一页', pages: '分页',
  port: '端口', socket: '插座', state: '状态', power: '功率', energy: '电量', voltage: '电压', current: '电流', temperature: '温度',
  order: '订单', session: '会话', commands: '指令', timeline: '时间线', no_ports: '设备尚未上报端口。',
  no_orders: '暂无订单。', no_commands: '暂无指令。', start: '启动', stop: '停止', start_charge: '启动充电', stop_charge: '停止充电',
  send_command: '发送指令', command: '指令', params: '参数 (JSON)', bad_json: '参数不是 JSON 对象。',
  mode: '模式', 'mode.full': '充满为止', 'mode.time': '按时间', 'mode.energy': '按电量', 'mode.budget': '按金额', 'mode.power': '按功率', duration_min: '时长(分钟)', energy_input: '电量 (Wh)',
  confirm: '确认', cancel: '取消', sent_ok: '已受理:{what}', stop_question: '停止 {device} 端口 {port} 的充电?',
  command_question: '指令将立即发送到 {device}。', start_question: '{device} 的端口 {port} 将通电。',
  at: '时间', what: '内容', details: '详情', fate: '结果', attempts: '次数', settled_at: '结算时间', made: '创建时间', reason: '原因', created: '下达时间', duration: '时长', amount: '金额',
  started: '开始', ended: '结束', end_reason: '结束原因', origin: '来源', max_power: '最大功率', order_state: '订单状态', estimated: '估算', yes: '是', no: '否',
  business_no: '业务号', clock: '时钟偏差', iccid: 'ICCID', signal: '信号', epoch: '会话序号', address: '地址', opened: '起始时间', model: '类型',
  url: '地址', events: '事件', status: '状态', deliveries: '投递记录', redeliver: '重新投递', test: '测试', no_webhooks: '尚未配置回调。',
  no_deliveries: '暂无投递。', answer: '响应', needs_admin: '此页面需要管理员密钥。', not_found: '页面不存在。', loading: '加载中',
  last_status: '最近状态码', every: '全部', redeliver_question: '再次投递 {event}?', back: '返回', version: '版本', figures: '指标', filter: '筛选',
  'state.idle': '空闲', 'state.plugged': '已插枪', 'state.charging': '充电中', 'state.full': '已充满', 'state.float': '浮充', 'state.fault': '故障', 'state.offline': '离线', 'state.unknown': '未知',
  'order.pending': '待启动', 'order.starting': '启动中', 'order.charging': '充电中', 'order.stopping': '停止中', 'order.settled': '已结算', 'order.failed': '失败', 'order.cancelled': '已取消',
  'fate.queued': '排队中', 'fate.sent': '已发送', 'fate.acked': '完成', 'fate.refused': '被拒绝', 'fate.expired': '已过期', 'fate.dead': '无应答', 'fate.cancelled': '已取消',
  'event.device.registered': '设备注册', 'event.device.online': '设备上线', 'event.device.offline': '设备离线', 'event.device.alarm': '告警',
  'event.port.state_changed': '端口变化', 'event.charging.started': '充电开始', 'event.charging.progress': '充电中', 'event.charging.ended': '充电结束',
  'hook.active': '启用', 'hook.paused': '暂停', 'hook.stopped': '已停用',
  'delivery.pending': '待投递', 'delivery.delivered': '已投递', 'delivery.dead': '已放弃', 'delivery.cancelled': '已取消',
  'event.order.corrected': '订单更正', 'event.webhook.test': '测试',
  'event.order.failed': '订单失败', 'event.card.swiped': '刷卡', 'event.command.finished': '指令完成',
}

const LANGUAGE = 'pilegate.language'
const WORDS = { en: EN, zh: ZH }
let language = localStorage.getItem(LANGUAGE) ?? (navigator.language.startsWith('zh') ? 'zh' : 'en')
if (WORDS[language] === undefined) language = 'en'
const showLanguage = () => {
  document.documentElement.lang = language === 'zh' ? 'zh-CN' : 'en'
}
showLanguage()

export function toggleLanguage() {
  language = language === 'en' ? 'zh' : 'en'
  localStorage.setItem(LANGUAGE, language)
  showLanguage()
}

/** @param values put in for `{name}` */
export function t(key, values = {}) {
  return (WORDS[language][key] ?? key).replace(/\{(\w+)\}/g, (_, name) => String(values[name] ?? ''))
}

/** A word of the gateway's own vocabulary, or the word itself when it has no translation. */
export const word = (group, value) => (value === null || value === undefined ? '–' : (WORDS[language][`${group}.${value}`] ?? String(value)))

/** The same in the first vocabulary that knows it. */
export const anyWord = (groups, value) =>
  word(groups.find((group) => WORDS[language][`${group}.${value}`] !== undefined) ?? groups[0], value)

const CLOCK = { hour: '2-digit', minute: '2-digit', second: '2-digit', hourCycle: 'h23' }
/** @param atS Unix s */
export const clockText = (atS) => new Intl.DateTimeFormat('en-GB', CLOCK).format(new Date(atS * 1_000))

const locale = () => (language === 'zh' ? 'zh-CN' : 'en-GB')
const two = { day: '2-digit', month: '2-digit', hour: '2-digit', minute: '2-digit', second: '2-digit' }
export const timeText = (at) => (at === null || at === undefined ? '–' : new Intl.DateTimeFormat(locale(), two).format(new Date(at)))
export const numberText = (value, digits = 0) =>
  value === null || value === undefined
    ? '–'
    : new Intl.NumberFormat(locale(), { maximumFractionDigits: digits }).format(value)
export const unitText = (value, unit, digits = 0) => (value === null || value === undefined ? '–' : `${numberText(value, digits)} ${unit}`)
export function durationText(seconds) {
  if (seconds === null || seconds === undefined) return '–'
  const [hours, minutes, rest] = [Math.floor(seconds / 3600), Math.floor((seconds % 3600) / 60), seconds % 60]
  const pad = (part) => String(part).padStart(2, '0')
  return hours > 0 ? `${hours}:${pad(minutes)}:${pad(rest)}` : `${minutes}:${pad(rest)}`
}
export const moneyText = (fen) => (fen === null || fen === undefined ? '–' : `¥${(fen / 100).toFixed(2)}`)
